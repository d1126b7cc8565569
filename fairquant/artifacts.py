"""Files handed from stage to stage: written whole or not at all (write, fsync, rename), read with one-line errors.

Nothing is pickled: tables are csv, small results JSON, tensors safetensors. Bytes depend on the content alone. Tensors
carry a checksum of all that was written, so that a damaged file is never computed with; of other files DVC's does
(``dvc status``).
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from fairquant.errors import ArtifactError

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

WRITERS = {
    "data/prepared/": "prepare",
    "models/pretrained.": "pretrain", "metrics/pretrain.": "pretrain", "plots/pretrain/": "pretrain",
    "models/baseline_predictions.": "baseline", "metrics/baseline.": "baseline",
    "models/importance.": "importance",
    "models/bits.": "assign", "metrics/bits.": "assign", "plots/bits/": "assign",
    "models/quantized.": "quantize", "metrics/quantize.": "quantize", "plots/quantize/": "quantize",
    "models/quantized_predictions.": "evaluate", "metrics/evaluate.": "evaluate", "plots/evaluate/": "evaluate",
    "models/export/": "export", "models/exported_predictions.": "export", "metrics/export.": "export",
    "report/": "report",
}  # fmt: skip
"""How the paths of files begin, and the stage of dvc.yaml that writes them."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; on success it is synced and renamed to ``path``, on error removed.

    What a killed process left behind under the temporary name is cleared first. Where the disk is full or may not be
    written, the ``OSError`` names ``path``.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        yield partial
        _sync(partial)
        replaced = target.with_name(f".{target.name}.replaced.partial")
        if target.is_dir():
            _remove(replaced)
            os.replace(target, replaced)
        os.replace(partial, target)
        _sync_entry(target.parent)
        _remove(replaced)
    except OSError as error:
        if error.filename is None or str(partial) in os.fsdecode(error.filename):
            error.filename, error.filename2 = str(target), None  # writing to a full disk names no file at all
        raise
    finally:
        with suppress(OSError):  # the first error counts, and what stays is cleared before the next attempt
            _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def reserve(path: str | Path, size: int) -> None:
    """Give the file ``path`` room for ``size`` bytes on the disk, now.

    A file that is written through a memory map would otherwise end the process with a signal, without a word, as soon
    as the disk is full. File systems that cannot reserve go without.
    """
    with Path(path).open("r+b") as file, _naming(path):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except (AttributeError, OSError) as error:  # AttributeError: not on this operating system
            if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Add ``path`` to the errors of the operating system that name no file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _sync(path: Path) -> None:
    """Flush a file, or a folder and all that is in it, to the disk."""
    if path.is_dir():
        for item in path.iterdir():
            _sync(item)
    _sync_entry(path)


def _sync_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


class CsvWriter:
    """Writes rows of csv that ``csv.reader`` gives back as they were, to a text file opened with ``newline=""``.

    A row with a carriage return is quoted whole: before Python 3.13 ``csv.writer`` leaves the sign bare where lines
    end with a newline alone, and readers take it for the row's end.
    """

    def __init__(self, file: SupportsWrite[str]) -> None:
        """Write to ``file``."""
        self._plain = csv.writer(file, lineterminator="\n")
        self._quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)

    def writerow(self, row: Iterable[Any]) -> None:
        """Write one row."""
        values = list(row)
        quoted = any(isinstance(value, str) and "\r" in value for value in values)
        (self._quoting if quoted else self._plain).writerow(values)

    def writerows(self, rows: Iterable[Iterable[Any]]) -> None:
        """Write each of ``rows``."""
        for row in rows:
            self.writerow(row)


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as indented JSON; NaN and infinity become null.

    Floats are rounded to 6 decimals, those below 0.001 to 4 significant digits.
    """
    write_text(path, json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; a missing or broken file raises ``ArtifactError``."""
    try:
        with opening(path):
            value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: JSONDecodeError, UnicodeDecodeError, a number too long
        raise ArtifactError(f"{path}: not valid JSON ({error}); {anew(path)}") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: got {type(value).__name__}; allowed: a JSON object")
    return value


def read_text(path: str | Path) -> str:
    """Read a text file of a stage, line ends as they are; one that is missing or no text raises ``ArtifactError``."""
    try:
        with opening(path):
            return Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: not text ({error}); {anew(path)}") from None


@contextmanager
def opening(path: str | Path) -> Iterator[None]:
    """Turn the refusal of the operating system to read ``path`` into an ``ArtifactError``."""
    try:
        yield
    except FileNotFoundError:
        raise ArtifactError(f"{path}: not found; run the stage that writes it (dvc repro)") from None
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise
        reason = "a folder" if Path(path).is_dir() else error.strerror or error
        raise ArtifactError(f"{path}: not readable ({reason}); {anew(path)}") from None


def anew(path: str | Path) -> str:
    """Say what writes a damaged file of the pipeline anew, and where to read on if DVC's own copy is damaged too.

    >>> anew("models/bits.safetensors"), anew("mine.json")
    ('dvc repro assign writes it anew (docs/faults.md)', 'dvc repro writes it anew (docs/faults.md)')
    """
    place = Path(path).absolute().as_posix() + "/"
    stage = next((stage for name, stage in WRITERS.items() if f"/{name}" in place), "")
    return " ".join(word for word in ("dvc repro", stage, "writes it anew (docs/faults.md)") if word)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return round(value, 6) if value == 0 or abs(value) >= 1e-3 else float(f"{value:.4g}")
    return value


def write_tensors(path: str | Path, tensors: Mapping[str, np.ndarray], *, meta: Mapping[str, Any]) -> None:
    """Write named arrays as safetensors; its header holds a checksum and ``meta``: 64 hex digits, a space, JSON."""
    text = json.dumps(_plain(meta), ensure_ascii=False, sort_keys=True)
    arrays = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    with atomic_path(path) as partial:
        partial.write_bytes(to_safetensors(arrays, metadata={"fairquant": f"{_checksum(arrays, text)} {text}"}))


def read_tensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what ``write_tensors`` wrote: (arrays by name, meta). Any damage raises ``ArtifactError``."""
    try:
        with opening(path), safe_open(str(path), framework="np") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, ValueError) as error:  # the latter: numpy of sizes or types it does not know
        raise ArtifactError(f"{path}: not a readable safetensors file ({error}); {anew(path)}") from None
    if "fairquant" not in header:
        raise ArtifactError(f"{path}: got a safetensors file without a fairquant header; allowed: a stage's output")
    digest, _, text = header["fairquant"].partition(" ")
    if digest != _checksum(arrays, text):
        raise ArtifactError(f"{path}: got other content than its checksum says; {anew(path)}")
    meta: dict[str, Any] = json.loads(text)
    return arrays, meta


def _checksum(arrays: Mapping[str, np.ndarray], text: str) -> str:
    """Return the sha256 of ``text`` and of names, types, shapes and values of the arrays, in hex."""
    digest = hashlib.sha256(f"{len(text)} {text}".encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(json.dumps([name, array.dtype.str, *arrays[name].shape]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
