"""FairQuant: fairness-aware compression of image classifiers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

__version__ = "0.1.0"
__all__ = ["__version__", "load_packed"]


def load_packed(path: str | Path) -> nn.Module:
    """Return the model in a packed file: a plain torch module in evaluation mode, on the CPU.

    See ``fairquant.export.packed.load_packed``. Imports torch when it is called, not before.
    """
    # Found by its relative name: every stage imports this file, none depends on what stands behind this function.
    packed = importlib.import_module(".export.packed", __name__)
    model: nn.Module = packed.load_packed(path)
    return model
