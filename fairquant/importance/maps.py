"""Importance maps as a typed artifact: one map per group and layer, with the group names. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fairquant import artifacts
from fairquant.errors import ArtifactError, UserError

Map = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ImportanceMaps:
    r"""How important each weight of each quantizable layer is to each group.

    Attributes:
        groups: names, in the order of the maps' first dimension.
        counts: samples each group was measured on, in the same order.
        layers: float32 array (G, \*weight shape) per layer name, in module order; finite.
        meta: how it was measured (metric, by, normalize, seed ...): plain values.

    Raises ``UserError`` for values that are not finite (naming layer and group) or shapes that do not fit.
    """

    groups: tuple[str, ...]
    counts: tuple[int, ...]
    layers: Mapping[str, Map]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check names, shapes and values."""
        if not self.groups or len(set(self.groups)) != len(self.groups):
            raise UserError(f"importance: got the groups {list(self.groups)}; allowed: one or more different names")
        if len(self.counts) != len(self.groups) or min(self.counts) < 1:
            raise UserError(f"importance: got the counts {list(self.counts)}; allowed: one above 0 for each group")
        if not self.layers:
            raise UserError("importance: got no layer; allowed: one or more")
        for name, array in self.layers.items():
            if array.dtype != np.float32 or array.ndim < 2 or len(array) != len(self.groups):
                raise UserError(
                    f"importance: layer {name!r}: got {array.dtype} {array.shape}; "
                    f"allowed: float32 ({len(self.groups)}, *weight shape)"
                )
            for group, values in zip(self.groups, array, strict=True):
                check_finite(name, group, bool(np.isfinite(values).all()))

    def save(self, path: str | Path) -> None:
        """Write the maps to ``path`` (safetensors), atomically; the same maps give the same bytes."""
        meta = {
            "kind": "importance",
            "groups": list(self.groups),
            "counts": list(self.counts),
            "layers": list(self.layers),
            "measured": dict(self.meta),
        }
        artifacts.write_tensors(path, self.layers, meta=meta)

    @classmethod
    def load(cls, path: str | Path) -> ImportanceMaps:
        """Read what ``save`` wrote; raises ``ArtifactError`` for anything else."""
        arrays, meta = artifacts.read_tensors(path)
        if meta.get("kind") != "importance" or sorted(arrays) != sorted(meta.get("layers", [])):
            raise ArtifactError(f"{path}: got no importance maps; allowed: the importance stage's output")
        try:
            layers = {name: arrays[name] for name in meta["layers"]}
            return cls(tuple(meta["groups"]), tuple(meta["counts"]), layers, meta["measured"])
        except UserError as error:
            raise ArtifactError(f"{path}: {error}") from None


def check_finite(layer: str, group: str, finite: bool) -> None:
    """Raise the one-line ``UserError`` about ``layer`` and ``group`` unless ``finite``."""
    if not finite:
        raise UserError(
            f"importance: layer {layer!r}, group {group!r}: got NaN or infinite values; allowed: finite ones "
            "(a diverged model, or a learning rate too high in pretrain)"
        )
