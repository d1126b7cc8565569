"""Files handed from stage to stage: written whole or not at all (write, fsync, rename), read with one-line errors.

Nothing is pickled: tables are csv, small results JSON, tensors safetensors. Bytes depend on the content alone.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from fairquant.errors import ArtifactError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; on success it is synced and renamed to ``path``, on error removed.

    What a killed process left behind under the temporary name is cleared first.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    _remove(partial)
    try:
        yield partial
        _sync(partial)
        replaced = target.with_name(f".{target.name}.replaced.partial")
        if target.is_dir():
            _remove(replaced)
            os.replace(target, replaced)
        os.replace(partial, target)
        _sync_entry(target.parent)
        _remove(replaced)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as indented JSON; NaN and infinity become null.

    Floats are rounded to 6 decimals, those below 0.001 to 4 significant digits.
    """
    write_text(path, json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; a missing or broken file raises ``ArtifactError``."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: not found; run the stage that writes it (dvc repro)") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: got {type(value).__name__}; allowed: a JSON object")
    return value


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
    """Write named arrays as safetensors with ``meta`` as JSON in the header."""
    header = {"fairquant": json.dumps(_plain(meta), ensure_ascii=False, sort_keys=True)}
    arrays = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    with atomic_path(path) as partial:
        partial.write_bytes(to_safetensors(arrays, metadata=header))


def read_tensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what ``write_tensors`` wrote: (arrays by name, meta)."""
    try:
        with safe_open(str(path), framework="np") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ArtifactError(f"{path}: not found; run the stage that writes it (dvc repro)") from None
    except SafetensorError as error:
        raise ArtifactError(f"{path}: not a readable safetensors file ({error})") from None
    if "fairquant" not in header:
        raise ArtifactError(f"{path}: got a safetensors file without a fairquant header; allowed: a stage's output")
    return arrays, json.loads(header["fairquant"])
