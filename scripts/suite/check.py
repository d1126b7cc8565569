"""What a temporary copy of the repository would miss: experiments see what git or DVC tracks, and absolute paths."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from fairquant.config import Config
from fairquant.errors import DataError


class Files(Protocol):
    """What the check needs of ``scripts.suite.queue.Queue``."""

    root: Path

    def untracked(self, path: str) -> list[str]: ...  # noqa: D102


def check_inputs(config: Config, files: Files) -> None:
    """Raise ``DataError`` where ``data.path`` or ``model.weights`` would be absent in a queued experiment."""
    _check("data.path", config.data.path, files)
    if config.model.weights not in ("none", "imagenet"):
        _check("model.weights", config.model.weights, files)


def _check(key: str, value: str, files: Files) -> None:
    path = files.root / value
    if not path.exists():
        raise DataError(f"{key}: got {value!r}, which does not exist; allowed: an existing path")
    if Path(value).is_absolute():
        return
    missing = [name for name in files.untracked(value) if not _in_dvc(files.root / name, files.root)]
    if missing:
        raise DataError(
            f"{key}: got {value!r} with untracked files ({missing[0]}), which queued experiments do not see; allowed: "
            "an absolute path, or files tracked by git or dvc add"
        )


def _in_dvc(file: Path, root: Path) -> bool:
    """Tell whether ``dvc add`` tracks the file or a folder above it."""
    return any(
        path.with_name(f"{path.name}.dvc").exists() for path in (file, *file.parents) if path.is_relative_to(root)
    )
