"""How much faster is a training batch from the decoded store than one decoded from JPEG files? Prints one table.

Run from the repository: ``python benchmarks/bench_data.py [--size 64] [--source-size 64] [--batches 20]``. It draws its
own JPEG files; both sides end with the same normalised float32 channels-last batch on the CPU, take turns, use one
thread, and the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.table import Pairs, Row
from fairquant.config.load import parse_config
from fairquant.data.batches import iterate
from fairquant.data.decode import decode
from fairquant.data.derm import Lesion, draw
from fairquant.data.prepare import prepare
from fairquant.data.store import Store

WANTED = 0.2
"""Store ÷ JPEG."""


def write_jpegs(folder: Path, count: int, size: int) -> None:
    lines = ["image,label,group"]
    for index in range(count):
        lesion = Lesion(*(0.8 if index % 2 else 0.2,) * 3)
        pixels = draw(40.0, lesion, size=size, seed=(0, index), difficulty=0.3)
        Image.fromarray(pixels).save(folder / f"{index}.jpg", quality=90)
        lines.append(f"{index}.jpg,{index % 2},{'xy'[index // 2 % 2]}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def from_jpeg(paths: list[Path], store: Store) -> torch.Tensor:
    size = store.image_size
    pixels = torch.from_numpy(np.stack([decode(path, size) for path in paths])).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(store.meta[key]).view(1, 3, 1, 1) * 255 for key in ("mean", "std"))
    return ((pixels.float() - mean) / std).contiguous(memory_format=torch.channels_last)


def from_store(rows: np.ndarray, store: Store) -> torch.Tensor:
    stream = iterate(store, rows, batch_size=len(rows), device=torch.device("cpu"), prefetch=False)
    return next(iter(stream)).images


def measure(size: int, source_size: int, batch_size: int, batches: int) -> Pairs:
    """Return the processor seconds of each batch from JPEG files and from the store, which must agree."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_jpegs(folder, batch_size * batches, source_size)
        data = {"name": "folder", "path": name, "image_size": size}
        prepare(parse_config({"data": data, "workers": 1}), folder / "prepared")
        store = Store.open(folder / "prepared")
        order = np.random.default_rng(0).permutation(len(store)).reshape(batches, batch_size)
        jpeg, stored = [], []
        for rows in order:
            slow, expected = seconds(from_jpeg, [folder / store.ids[row] for row in rows], store)
            fast, got = seconds(from_store, rows, store)
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
            jpeg.append(slow)
            stored.append(fast)
    return Pairs(tuple(jpeg), tuple(stored))


def seconds(function, *arguments) -> tuple[float, torch.Tensor]:
    start = time.process_time()
    result = function(*arguments)
    return time.process_time() - start, result


def rows(quick: bool) -> Iterator[Row]:
    """Yield a training batch from the store ÷ decoded from JPEG files."""
    pairs = measure(64, 64, 64, 20)
    what = "a batch of 64 images of 64 px from the decoded store ÷ from 64 px JPEG files"
    yield pairs.row("data/store", what, wanted=WANTED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64, help="final image size, pixels")
    parser.add_argument("--source-size", type=int, default=64, help="size of the JPEG files, pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=20)
    options = parser.parse_args()
    pairs = measure(options.size, options.source_size, options.batch_size, options.batches)
    slow, fast = (statistics.median(column) * 1000 for column in (pairs.baseline, pairs.ours))
    row = {
        "batch": f"{options.batch_size} × {options.size} px from {options.source_size} px JPEG",
        "jpeg_ms": round(slow, 2),
        "store_ms": round(fast, 2),
        "store / jpeg": round(pairs.ratio, 3),
        "wanted": WANTED,
    }
    print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
    print("| " + " | ".join(str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    main()
