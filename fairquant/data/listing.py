"""Which image files lie where, for data sets whose tables name images without a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def find_images(folder: Path, names: Sequence[str], *, suffixes: Sequence[str] = (".jpg",)) -> dict[str, Path]:
    """Return every image in the subfolders ``names`` of ``folder`` by its name without suffix.

    A name that stands in several subfolders is the one in the first of them; subfolders that are absent are skipped.
    """
    found: dict[str, Path] = {}
    for name in names:
        place = folder / name
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if path.suffix.lower() in suffixes:
                found.setdefault(path.stem, path)
    return found
