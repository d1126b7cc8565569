"""MNIST in the published idx format: 28×28 grey digits; group = class.

Source: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits". Layout of ``data.path``:
train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz (also
without .gz). The t10k files are the test and val is split from train; with the t10k files alone they are split
three ways by the fractions. Where the t10k files are not there the missing ones of the four are fetched.
"""

from __future__ import annotations

import gzip
import zlib
from functools import partial
from pathlib import Path

import numpy as np

from fairquant.config.base import Section
from fairquant.data.download import Link, fetch
from fairquant.data.raw import DataRequest, Pixels, RawDataset, RawSample, choose, choose_groups
from fairquant.errors import DataError

COLUMN = "digit"
NAMES = tuple(str(digit) for digit in range(10))
LAYOUT = "{t10k,train}-images-idx3-ubyte.gz and {t10k,train}-labels-idx1-ubyte.gz as published (train is optional)"
MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
LINKS = (
    Link(f"{MIRROR}train-images-idx3-ubyte.gz", md5="f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    Link(f"{MIRROR}train-labels-idx1-ubyte.gz", md5="d53e105ee54ea40749a09fcbcd1e9432"),
    Link(f"{MIRROR}t10k-images-idx3-ubyte.gz", md5="9fb629c4189551a2d022fa330f9573f3"),
    Link(f"{MIRROR}t10k-labels-idx1-ubyte.gz", md5="ec29112dd5afa0611ce80d1b7f02629c"),
)
"""torchvision's mirror of the files. The t10k files stand last: once they are there, so is everything else."""
_MAGIC = {1: 2049, 3: 2051}


class Options(Section):
    """mnist has no settings."""


def load(request: DataRequest, options: Options) -> RawDataset:
    """Read the files that are there, after fetching what is missing where the t10k files are."""
    choose("data.label", request.label, [COLUMN], COLUMN)
    choose_groups(request.group, [COLUMN], [COLUMN])
    if request.split_by is not None:
        raise DataError(f"data.split_by: got {request.split_by!r}; allowed: null for mnist, which records no writer")
    if request.download:
        _fetch_missing(request.path)
    test, train = _read_part(request.path, "t10k"), _read_part(request.path, "train")
    if test is None:
        raise DataError(
            f"data.path: {request.path / 't10k-images-idx3-ubyte.gz'} not found; expected {LAYOUT} "
            "(data.download: true fetches them)"
        )
    samples = _samples("t10k", *test, "test" if train else None)
    if train is not None:
        samples = _samples("train", *train, "train") + samples
    return RawDataset("mnist", NAMES, (COLUMN,), samples, group_order={COLUMN: NAMES})


def _fetch_missing(folder: Path) -> None:
    """Fetch what is missing of the four files, unless both t10k files are there: then that is what was meant."""
    missing = [link for link in LINKS if _find(folder, link.name.removesuffix(".gz")) is None]
    if any(link.name.startswith("t10k") for link in missing):
        for link in missing:
            fetch(link, folder / link.name, layout=LAYOUT)


def _read_part(folder: Path, part: str) -> tuple[Pixels, Pixels] | None:
    """Return (images (N, 28, 28), labels (N,)) of t10k or train; ``None`` where neither file is there."""
    images = _find(folder, f"{part}-images-idx3-ubyte")
    labels = _find(folder, f"{part}-labels-idx1-ubyte")
    if images is None and labels is None:
        return None
    if images is None or labels is None:
        raise DataError(f"data.path: got one of the two {part} files in {folder}; expected {LAYOUT}")
    pixels, codes = read_idx(images, dimensions=3), read_idx(labels, dimensions=1)
    if len(pixels) != len(codes):
        raise DataError(f"{images}: got {len(pixels)} images for the {len(codes)} labels of {labels.name}")
    return pixels, codes


def _find(folder: Path, stem: str) -> Path | None:
    return next((path for path in (folder / f"{stem}.gz", folder / stem) if path.is_file()), None)


def read_idx(path: Path, *, dimensions: int) -> Pixels:
    """Read an idx file of unsigned bytes, gzipped or not; anything else raises ``DataError``."""
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a readable gzip file ({error})") from None
    header = np.frombuffer(data[: 4 * (1 + dimensions)], dtype=">i4", count=len(data[: 4 * (1 + dimensions)]) // 4)
    if len(header) != 1 + dimensions or header[0] != _MAGIC[dimensions]:
        raise DataError(f"{path}: not an idx file of unsigned bytes in {dimensions} dimensions; expected {LAYOUT}")
    shape = tuple(int(length) for length in header[1:])
    body = np.frombuffer(data, np.uint8, offset=4 * (1 + dimensions))
    if len(body) != int(np.prod(shape)):
        raise DataError(f"{path}: got {len(body)} bytes for the shape {shape}; the file is cut short or too long")
    return body.reshape(shape)


def _samples(part: str, images: Pixels, labels: Pixels, split: str | None) -> list[RawSample]:
    return [
        RawSample(
            f"{part}-{row:05d}", row, str(label), (str(label),), partial(np.array, image), split=split, table=part
        )
        for row, (image, label) in enumerate(zip(images, labels.tolist(), strict=True), start=1)
    ]
