"""Image files as a model takes them: which there are, their pixels, and training's arithmetic on those."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fairquant.data.decode import decode
from fairquant.data.raw import Pixels, natural_key
from fairquant.errors import DataError, UserError

SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif",
    ".tiff", ".webp",
)  # fmt: skip
"""What counts as an image in a folder; a file that is named is read whatever its suffix."""
AHEAD = 2
"""Images per thread that are decoded ahead of the model."""


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read, and why (one line)."""

    image: Path
    reason: str

    def __str__(self) -> str:
        """Return the line a person reads."""
        return f"{self.image}: not a readable image ({self.reason})"


def find_images(arguments: Iterable[str | Path], *, recursive: bool = False) -> list[Path]:
    """Return the images that files and folders stand for, in the order given, each once.

    Folders give their files with an image's suffix (capitals or not), "9.jpg" before "10.jpg"; hidden files are left
    out, and so are folders in folders unless ``recursive``. Links to folders are not followed.

    Raises:
        DataError: something is not there, a folder cannot be listed, or it holds no image.
    """
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found += _in_folder(path, recursive)
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path}: not found; allowed: image files and folders of images")
    first: dict[str, Path] = {}
    for path in found:
        first.setdefault(os.path.abspath(path), path)
    return list(first.values())


def _in_folder(folder: Path, recursive: bool) -> list[Path]:
    found: list[Path] = []
    try:
        for place, folders, files in os.walk(folder, onerror=_raise):
            folders[:] = [name for name in folders if recursive and not name.startswith(".")]
            found += [Path(place, name) for name in files if not name.startswith(".") and _is_image(name)]
    except OSError as error:
        raise DataError(f"{error.filename}: not readable ({error.strerror})") from None
    if not found:
        deeper = "" if recursive else ", or --recursive for those in its folders"
        raise DataError(f"{folder}: got no images; allowed: files named {' '.join(SUFFIXES)}{deeper}")
    return sorted(found, key=lambda path: [natural_key(part) for part in path.parts])


def _raise(error: OSError) -> None:
    raise error


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def read_images(paths: Iterable[Path], size: int, *, threads: int) -> Iterator[tuple[Path, Pixels | Unreadable]]:
    """Yield each path with its pixels, uint8 (size, size, 3), in order; ``threads`` decode a few images ahead.

    Pixels are exactly those that the prepare stage writes (``fairquant.data.decode``).
    """
    waiting: deque[tuple[Path, Future[Pixels | Unreadable]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for path in paths:
            waiting.append((path, pool.submit(_read, path, size)))
            if len(waiting) > AHEAD * threads:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(path: Path, size: int) -> Pixels | Unreadable:
    try:
        return decode(path, size)
    except OSError as error:
        return Unreadable(path, error.strerror or _reason(error, path))
    except Exception as error:  # damaged files make the image library raise almost anything
        return Unreadable(path, _reason(error, path))


def _reason(error: Exception, path: Path) -> str:
    text = " ".join(str(error).split()).replace(repr(path), "").replace(repr(str(path)), "").strip()
    return text or type(error).__name__


def normalise(pixels: Pixels, mean: Sequence[float], std: Sequence[float]) -> npt.NDArray[np.float32]:
    """Return uint8 pixels (N, H, W, 3) as the model takes them: float32 (N, 3, H, W).

    (x − 255·mean) · (1/(255·std)) in float32, one operation after the other: bit for bit what
    ``fairquant.data.batches`` feeds in training.

    >>> normalise(np.full((1, 1, 1, 3), 255, np.uint8), (0.5, 0.5, 0.0), (0.5, 0.25, 1.0)).tolist()
    [[[[1.0]], [[2.0]], [[1.0]]]]
    """
    if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8:
        raise UserError(f"pixels: got {pixels.dtype} {pixels.shape}; allowed: uint8 (N, height, width, 3)")
    images = pixels.astype(np.float32)
    images -= np.array(mean, np.float32) * np.float32(255)
    images *= np.float32(1) / (np.array(std, np.float32) * np.float32(255))
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
