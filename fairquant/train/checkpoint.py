"""Resume of a killed training run: one file after every epoch, removed when the run is done.

The folder lies under the project's root, outside what DVC tracks, and is named by a hash of everything the run
depends on (parameters, data, starting weights, this package's code), so that a stale checkpoint is never picked up.
Random numbers need no saving: every epoch seeds them from (seed, epoch).

Of several processes the first writes and reads, and tells the others what it read: they need not share a disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import pickle
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairquant.artifacts import atomic_path
from fairquant.parallel.collectives import from_first, is_first

LOG = logging.getLogger(__name__)
FILE = "last.pt"
DIGEST = hashlib.sha256().digest_size
"""Bytes at the beginning of the file: the sha256 of the rest, which is torch's."""


def key(stage: str, params: Mapping[str, Any], checksum: str, state: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits that name a run.

    Args:
        stage: who trains.
        params: every parameter the run depends on, JSON-like.
        checksum: of the prepared data (``store.meta["checksum"]``).
        state: the starting weights (``model.state_dict()``).
    """
    digest = hashlib.sha256(json.dumps([stage, params, checksum, torch.__version__], sort_keys=True).encode())
    digest.update(_code())
    _add(digest, state)
    return digest.hexdigest()[:16]


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits that only these names and values have, bit for bit."""
    digest = hashlib.sha256()
    _add(digest, state)
    return digest.hexdigest()[:16]


def _add(digest: hashlib._Hash, state: Mapping[str, Tensor]) -> None:
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())


def root() -> Path:
    """Return where stages keep their checkpoints: ``.fairquant/resume`` in the DVC project that runs them.

    In a temporary or queued run that is the project the run was started from, so that its checkpoints survive it.
    """
    return Path(os.environ.get("DVC_ROOT", ".")) / ".fairquant" / "resume"


@cache
def _code() -> bytes:
    """Hash the package's sources: a run started by other code is another run."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.digest()


def save(directory: Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, lists, dicts) whole or not at all, in the first process.

    A run is not lost for want of a place to resume it from: where the disk refuses, that is logged once.
    """
    if not is_first():
        return
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    try:
        with atomic_path(directory / FILE) as partial, partial.open("wb") as file:
            file.write(hashlib.sha256(buffer.getbuffer()).digest())
            file.write(buffer.getbuffer())
    except OSError as error:
        _warn_once(f"{error.filename}: {error.strerror}; training goes on, a killed run would repeat these epochs")


@cache
def _warn_once(text: str) -> None:
    LOG.warning("%s", text)


def load(directory: Path) -> dict[str, Any] | None:
    """Return the last checkpoint, or None where there is none; an unreadable one is logged and counts as none.

    It is the first process's, on all of them.
    """
    return from_first(_read(directory) if is_first() else None)


def _read(directory: Path) -> dict[str, Any] | None:
    path = directory / FILE
    if not path.exists():
        return None
    try:
        data = memoryview(path.read_bytes())
        digest, content = data[:DIGEST], data[DIGEST:]
        if digest != hashlib.sha256(content).digest():
            raise OSError("got other content than its checksum says")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        LOG.warning("%s: unreadable checkpoint, training starts over (%s)", path, str(error).splitlines()[0])
        return None
    return dict(state)


def remove(directory: Path) -> None:
    """Remove the run's folder, and the parents it leaves empty; the first process's work."""
    if not is_first():
        return
    shutil.rmtree(directory, ignore_errors=True)
    for parent in directory.parents[:2]:
        with contextlib.suppress(OSError):  # not empty: another run's
            if parent.name in {"resume", ".fairquant"}:
                parent.rmdir()
