"""Decode and resize once: any image source → (size, size, 3) uint8, in parallel, into a memory-mapped array."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from fairquant import artifacts
from fairquant.data.colours import to_rgb
from fairquant.data.raw import ImageSource, Pixels
from fairquant.errors import DataError

CHUNK = 64
OF_THE_MACHINE = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE)
"""Errors of reading that say nothing about the image."""
MOST_PIXELS = 1 << 27
"""Larger images are refused before they are read: a file of a few kilobytes can ask for all memory there is."""
_WORTH_A_WORKER = 256


def decode(source: ImageSource, size: int) -> Pixels:
    """Return the image as uint8 (size, size, 3), RGB.

    The orientation tag is applied, any colours become RGB (``fairquant.data.colours``), the aspect ratio is not kept,
    resizing is Lanczos with antialiasing; of a file with several images it is the first. Raises ``ValueError`` for more
    than ``MOST_PIXELS`` or for grey values of unknown range, and whatever the image library raises for a file that is
    no image.
    """
    made = Image.open(source) if isinstance(source, Path) else source()
    if not isinstance(made, Image.Image):
        return _resize(Image.fromarray(made), size)
    with made as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"got {image.width} × {image.height} pixels; allowed: {MOST_PIXELS} in all")
        # JPEG can be decoded at 1/2, 1/4, 1/8: twice the final size keeps Lanczos' quality at a fraction of the time.
        image.draft(None, (2 * size, 2 * size))
        return _resize(ImageOps.exif_transpose(image), size)


def _resize(image: Image.Image, size: int) -> Pixels:
    rgb = to_rgb(image)
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(rgb, dtype=np.uint8)


def decode_all(
    sources: Sequence[ImageSource], *, size: int, out: Path | None, workers: int = 0, title: str = "decode"
) -> dict[int, str]:
    """Decode every source into row i of the array file ``out``; return the error text of each unreadable one.

    Args:
        sources: N image sources.
        size: height and width of the result, pixels.
        out: a .npy file of shape (N, size, size, 3) to create; ``None`` only checks that all can be read.
        workers: processes; 0 is one per available core. Small jobs run in this process. The result does not depend
            on it.
        title: text of the progress bar, which is silent where stderr is no terminal.
    """
    if out is not None:
        new_array(out, (len(sources), size, size, 3))
    chunks = [list(sources[start : start + CHUNK]) for start in range(0, len(sources), CHUNK)]
    starts = range(0, len(sources), CHUNK)
    errors: dict[int, str] = {}
    bar = tqdm(total=len(sources), desc=title, unit="image", disable=None)
    with bar, _mapper(min(workers or _cores(), len(sources) // _WORTH_A_WORKER)) as run:
        for chunk, found in zip(chunks, run(partial(_decode_chunk, size=size, out=out), chunks, starts), strict=True):
            errors.update(found)
            bar.update(len(chunk))
    return errors


def new_array(path: Path, shape: tuple[int, ...]) -> None:
    """Create a .npy file of uint8 zeros with room on the disk; ``OSError`` where that is full."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    del array
    artifacts.reserve(path, path.stat().st_size)


def _decode_chunk(sources: Sequence[ImageSource], start: int, *, size: int, out: Path | None) -> dict[int, str]:
    """Decode one chunk straight into the file, so that pixels never travel between processes."""
    pixels = np.zeros((len(sources), size, size, 3), np.uint8)
    errors = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on metadata that is damaged, which no pixel depends on; and on what we refuse
        for index, source in enumerate(sources):
            try:
                pixels[index] = decode(source, size)
            except Exception as error:  # damaged files make the image library raise almost anything
                if isinstance(error, MemoryError) or getattr(error, "errno", None) in OF_THE_MACHINE:
                    raise
                text = " ".join(str(error).split()).replace(f"{source}", getattr(source, "name", ""))
                errors[start + index] = f"{type(error).__name__}: {text}"
    if out is not None:
        array = np.lib.format.open_memmap(out, mode="r+")
        array[start : start + len(sources)] = pixels
    return errors


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterable[dict[int, str]]]]:
    """Yield ``map``, or one that runs in spawned processes: forking a process that holds threads can hang."""
    if workers <= 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_exit_with_parent)

    def start(*arguments: Any) -> Iterable[dict[int, str]]:
        with _without_interrupts():  # the first call starts all processes, which inherit this
            return pool.map(*arguments)

    try:
        yield start
    except BrokenProcessPool:
        raise DataError(
            "a decoding process was killed (out of memory?); run dvc repro again, or set workers to a smaller number"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back: processes started meanwhile never see it, but end with this one, which then does."""
    resource_tracker.ensure_running()  # before, since starting it lets interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _exit_with_parent() -> None:
    """Make this worker end when its parent is killed, instead of waiting for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.join,), daemon=True).start()


def _end_after(wait: Callable[[], None]) -> None:
    wait()
    os._exit(1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
