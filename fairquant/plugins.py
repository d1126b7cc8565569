"""The only registry: a plug-in is a file, and the file's name is the plug-in's name.

A plug-in module holds one function with the name its kind asks for (``KINDS``) and, where it has settings, a frozen
``Options`` model. Names are found by listing files, so that a configuration is validated without importing torch;
plug-in modules import torch inside functions or for type checking only.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from fairquant.errors import ConfigError

ROOT = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Kind:
    """Where the plug-ins of one kind live and which function each must define."""

    package: str
    function: str

    @property
    def folder(self) -> Path:
        """The folder whose files are the plug-ins."""
        return ROOT.joinpath(*self.package.split(".")[1:])


KINDS: dict[str, Kind] = {
    "dataset": Kind("fairquant.data.sets", "load"),
    "importance": Kind("fairquant.importance.metrics", "score"),
    "reducer": Kind("fairquant.reduce", "reduce"),
    "allocator": Kind("fairquant.allocate.methods", "allocate"),
    "scale": Kind("fairquant.quantize.scales", "make_scale"),
    "observer": Kind("fairquant.quantize.observers", "make_observer"),
    "loss": Kind("fairquant.train.losses", "loss"),
    "mode": Kind("fairquant.modes", "quantize"),
    "postprocess": Kind("fairquant.postprocess", "fit"),
}


@cache
def names(kind: str) -> tuple[str, ...]:
    """Return the sorted plug-in names of ``kind``, found without importing any of them.

    >>> {"balanced", "cvar", "max", "mean", "subtractive"} <= set(names("reducer"))
    True
    """
    return tuple(sorted(path.stem for path in KINDS[kind].folder.glob("*.py") if not path.stem.startswith("_")))


def load(kind: str, name: str) -> ModuleType:
    """Import and return the plug-in module ``name`` of ``kind``; unknown names raise ``ConfigError``."""
    if name not in names(kind):
        raise ConfigError(f"{kind}: got {name!r}; allowed: {' | '.join(names(kind))}")
    return importlib.import_module(f"{KINDS[kind].package}.{name}")
