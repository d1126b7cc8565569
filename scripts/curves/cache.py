"""Importance maps that outlive a sitting: files named by everything the maps depend on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import fairquant.importance
from fairquant.importance.maps import ImportanceMaps


def cached_maps(folder: Path, key: Mapping[str, Any], make: Callable[[], ImportanceMaps]) -> ImportanceMaps:
    """Return the maps of ``key``: those in ``folder``, else new ones, which are then kept there.

    The file's name depends on ``key`` and on the code that measures importance. Several processes may share a folder:
    each writes under a name of its own and renames.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode())
    digest.update(_code())
    path = folder / f"importance-{digest.hexdigest()[:16]}.safetensors"
    if path.exists():
        return ImportanceMaps.load(path)
    maps = make()
    own = folder / f"{path.stem}.{os.getpid()}.safetensors"
    maps.save(own)
    os.replace(own, path)
    return maps


@cache
def _code() -> bytes:
    """Hash the sources of the importance package: maps of other code are other maps."""
    digest = hashlib.sha256()
    package = Path(str(fairquant.importance.__file__)).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.digest()
