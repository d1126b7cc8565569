"""CIFAR-10: 60,000 colour images of 32×32 pixels in ten classes; group = class.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, 2009. ``data.path``,
or the folder named below in it, holds one of the two published forms; a published archive in ``data.path`` is unpacked
where it lies; with nothing there the binary form is fetched:

- cifar-10-batches-bin: data_batch_1.bin … data_batch_5.bin, test_batch.bin; a record is the label and 3,072 bytes.
- cifar-10-batches-py: data_batch_1 … data_batch_5, test_batch; pickles of {"data": (10000, 3072), "labels": …}.

test_batch is the test and val is split from train. A pickle can run code while it is read, so the second form is read
by ``fairquant.data.plain_pickle``, which knows containers, text, numbers and arrays of bytes and calls nothing that the
file names; it is to numpy's pickles what ``weights_only`` is to torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from fairquant.config.base import Section
from fairquant.data.download import Link, fetch_and_unpack
from fairquant.data.plain_pickle import ByteArray, read_plain_pickle
from fairquant.data.raw import DataRequest, Pixels, RawDataset, RawSample, choose, choose_groups
from fairquant.errors import DataError

COLUMN = "class"
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PARTS = {"test_batch": "test"} | {f"data_batch_{number}": "train" for number in range(1, 6)}
BINARY, PICKLED = "cifar-10-batches-bin", "cifar-10-batches-py"
LAYOUT = (
    f"{BINARY} (data_batch_1.bin to data_batch_5.bin, test_batch.bin) or {PICKLED} (data_batch_1 to data_batch_5, "
    "test_batch) in data.path, or the archive cifar-10-binary.tar.gz or cifar-10-python.tar.gz"
)
LINK = Link("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", md5="c32a1d4ab5d03f1284b67883e8d87530")
PICKLED_LINK = Link("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", md5="c58f30108f718f92721af3b95e74349a")
VALUES = 3 * 32 * 32


class Options(Section):
    """cifar10 has no settings."""


def load(request: DataRequest, options: Options) -> RawDataset:
    """Read the form that is there; without any, fetch the binary one."""
    choose("data.label", request.label, [COLUMN], COLUMN)
    choose_groups(request.group, [COLUMN], [COLUMN])
    if request.split_by is not None:
        raise DataError(f"data.split_by: got {request.split_by!r}; allowed: null for cifar10, which names no source")
    files, read = _find(request) or _obtain(request)
    absent = [path.name for path in files if not path.is_file()]
    if absent:
        raise DataError(f"data.path: {', '.join(absent)} not found in {files[0].parent}; expected {LAYOUT}")
    samples = [sample for path in files for sample in _samples(path.name.removesuffix(".bin"), *read(path))]
    order = sorted(samples, key=lambda sample: sample.split == "test")
    return RawDataset("cifar10", NAMES, (COLUMN,), order, group_order={COLUMN: NAMES})


_Read = Callable[[Path], tuple[Pixels, Sequence[int]]]


def _find(request: DataRequest) -> tuple[list[Path], _Read] | None:
    """Return the six files of the form that is there and how to read one of them."""
    forms: tuple[tuple[str, str, _Read], ...] = ((BINARY, ".bin", read_binary), (PICKLED, "", read_pickled))
    for name, suffix, read in forms:
        for folder in (request.path / name, request.path):
            files = [folder / f"{part}{suffix}" for part in PARTS]
            if any(path.is_file() for path in files):
                return files, read
    return None


def _obtain(request: DataRequest) -> tuple[list[Path], _Read]:
    """Unpack an archive that is there, or fetch one where that is allowed."""
    path = request.path
    if (path / PICKLED_LINK.name).is_file():
        fetch_and_unpack(PICKLED_LINK, path, layout=LAYOUT, member=PICKLED)
    elif request.download or (path / LINK.name).is_file():
        fetch_and_unpack(LINK, path, layout=LAYOUT, member=BINARY)
    found = _find(request)
    if found is None:
        raise DataError(f"data.path: no CIFAR-10 batch in {path}; expected {LAYOUT} (data.download: true fetches it)")
    return found


def read_binary(path: Path) -> tuple[Pixels, Sequence[int]]:
    """Return the images (N, 3072) and labels of a .bin file; ``DataError`` where it is not whole records."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
    if len(data) == 0 or len(data) % (1 + VALUES):
        raise DataError(f"{path}: got {len(data)} bytes; allowed: records of {1 + VALUES} bytes, the file is cut short")
    records = data.reshape(-1, 1 + VALUES)
    return records[:, 1:], records[:, 0].tolist()


def read_pickled(path: Path) -> tuple[Pixels, Sequence[int]]:
    """Return the images (N, 3072) and labels of a pickled batch, without running anything the file names."""
    batch = read_plain_pickle(path)
    allowed = "allowed: a CIFAR-10 batch as published, with data and labels"
    if not isinstance(batch, dict) or not {"data", "labels"} <= set(batch):
        raise DataError(f"{path}: got no mapping with data and labels; {allowed}")
    data, labels = batch["data"], batch["labels"]
    if not isinstance(data, ByteArray) or not isinstance(labels, list) or not all(map(_is_byte, labels)):
        raise DataError(f"{path}: got data or labels of another kind; {allowed}")
    if len(labels) == 0 or data.shape != (len(labels), VALUES) or len(data.content) != len(labels) * VALUES:
        shape = "×".join(map(str, data.shape))
        raise DataError(f"{path}: got {len(data.content)} bytes for {shape} values and {len(labels)} labels; {allowed}")
    return np.frombuffer(data.content, np.uint8).reshape(-1, VALUES), labels


def _is_byte(value: object) -> bool:
    return type(value) is int and 0 <= value <= 255


def _samples(part: str, images: Pixels, labels: Sequence[int]) -> list[RawSample]:
    names = [NAMES[label] if label < len(NAMES) else str(label) for label in labels]
    return [
        RawSample(f"{part}-{row:05d}", row, name, (name,), partial(_colour, image), split=PARTS[part], table=part)
        for row, (image, name) in enumerate(zip(images, names, strict=True), start=1)
    ]


def _colour(planes: Pixels) -> Pixels:
    """Turn 1,024 red, 1,024 green and 1,024 blue values into (32, 32, 3)."""
    return np.ascontiguousarray(planes.reshape(3, 32, 32).transpose(1, 2, 0))
