"""Fixtures for every part: real data where there is some, and small prepared data sets written without ``prepare``."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from fairquant.data.store import Store

REPO = Path(__file__).resolve().parents[1]
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data: $FAIRQUANT_SHARED_DATA or ../shared/data beside the repository; skips where absent."""
    folder = Path(os.environ.get("FAIRQUANT_SHARED_DATA", REPO.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set FAIRQUANT_SHARED_DATA)")
    return folder


@pytest.fixture
def make_store() -> Callable[..., Store]:
    """Return ``write_store``: writes a small prepared data set and opens it."""
    return write_store


def write_store(
    path: Path,
    *,
    n_per_group: int = 20,
    groups: Sequence[str] = ("light", "dark"),
    classes: Sequence[str] = ("benign", "malignant"),
    size: int = 16,
    seed: int = 0,
) -> Store:
    """Write images.npy, samples.csv and meta.json into ``path`` and open them.

    Each group has ``n_per_group`` samples: classes in turn, split 60/20/20 into train, val and test. A class lights up
    its own stripe of columns over noise, more faintly in later groups, so that a model can learn it.
    """
    path.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    n, width = n_per_group * len(groups), max(1, size // len(classes))
    group = np.repeat(np.arange(len(groups)), n_per_group)
    place = np.tile(np.arange(n_per_group), len(groups))
    label = place % len(classes)
    part = (place // len(classes)) % 5
    split = np.where(part < 3, "train", np.where(part == 3, "val", "test"))
    images = random.integers(40, 120, (n, size, size, 3)).astype(np.uint8)
    for row in range(n):
        images[row, :, label[row] * width : (label[row] + 1) * width] += np.uint8(100 // (1 + group[row]))
    np.save(path / "images.npy", images)
    with (path / "samples.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "label", "label_name", "group", "group_name", "split"])
        for row in range(n):
            names = classes[label[row]], int(group[row]), groups[group[row]]
            writer.writerow([f"s{row}", int(label[row]), *names, split[row]])
    train = images[split == "train"] / 255
    meta = {
        "source": "tests",
        "seed": seed,
        "image_size": size,
        "classes": list(classes),
        "groups": list(groups),
        "group_columns": ["group"],
        "splits": {
            side: {name: int(((split == side) & (group == code)).sum()) for code, name in enumerate(groups)}
            for side in ("train", "val", "test")
        },
        "class_counts": {
            side: {name: int(((split == side) & (label == code)).sum()) for code, name in enumerate(classes)}
            for side in ("train", "val", "test")
        },
        "mean": train.mean(axis=(0, 1, 2)).tolist(),
        "std": train.std(axis=(0, 1, 2)).tolist(),
        "dropped": {},
        "checksum": f"tests-{seed}-{n}-{size}",
    }
    (path / "meta.json").write_text(json.dumps(meta, ensure_ascii=False), encoding="utf-8")
    return Store.open(path)
