"""Fixtures of the data tests: manifests with images on disk, and configurations that read them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fairquant.config import Config
from fairquant.config.load import parse_config
from tests.data.server import Server

Rows = list[dict[str, str]]


def write_image(path: Path, seed: int, size: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_csv(path: Path, rows: Rows, columns: Sequence[str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., Rows]:
    """Write ``n`` png images under tmp_path/raw and return their rows: two labels × two groups in turn."""

    def make(n: int = 40, **columns: Callable[[int], str]) -> Rows:
        rows = []
        for index in range(n):
            name = f"images/{index}.png"
            write_image(tmp_path / "raw" / name, index)
            row = {"image": name, "label": "ab"[index % 2], "group": "xy"[index // 2 % 2]}
            rows.append({**row, **{column: make_value(index) for column, make_value in columns.items()}})
        return rows

    return make


@pytest.fixture
def folder_config(tmp_path: Path) -> Callable[..., Config]:
    """Write rows as tmp_path/raw/labels.csv and return a configuration that reads them."""

    def make(rows: Rows, options: dict[str, Any] | None = None, debug: bool = False, **data: Any) -> Config:
        write_csv(tmp_path / "raw" / "labels.csv", rows)
        section = {"name": "folder", "path": str(tmp_path / "raw"), "image_size": 8, **data}
        return parse_config({"data": section, "datasets": {"folder": options or {}}, "workers": 1, "debug": debug})

    return make


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A local web server (``server.serve(name, body)`` → address); downloads do not pause between attempts."""
    monkeypatch.setattr("fairquant.data.download.FIRST_PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    yield running
    running.close()
