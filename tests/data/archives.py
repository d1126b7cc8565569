"""Write archives for tests, honest and otherwise."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def tar_of(
    path: Path, files: Mapping[str, bytes], *, mode: str = "w:gz", extra: Sequence[tarfile.TarInfo] = ()
) -> Path:
    """Write ``files`` and then the bare members ``extra`` as tar (mode w, w:gz, w:bz2, w:xz)."""
    with tarfile.open(path, mode) as tape:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tape.addfile(info, io.BytesIO(body))
        for info in extra:
            tape.addfile(info)
    return path


def zip_of(path: Path, files: Mapping[str, bytes], *, modes: Mapping[str, int] | None = None) -> Path:
    """Write ``files`` as zip; ``modes`` gives the Unix type and permissions of a member."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, body in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (modes or {}).get(name, 0o100644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            bundle.writestr(info, body)
    return path
