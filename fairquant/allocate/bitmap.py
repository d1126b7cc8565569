"""The result of an allocation: a bit-width for every unit of every quantizable layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from fairquant import artifacts
from fairquant.errors import ArtifactError

Granularity = Literal["per_tensor", "per_channel", "per_param"]
Scheme = Literal["symmetric", "asymmetric"]
"""Whether grids are symmetric around 0 or have a zero point each."""
Per = Literal["channel", "tensor"]
"""Which weights of one width share a codebook: those of an output channel, or of a layer."""
Weighting = Literal["parameters", "channels", "units"]

STEP = "step/"
"""What the names of step sizes begin with in a file."""

KEPT_AXES: dict[str, int | None] = {"per_tensor": 0, "per_channel": 1, "per_param": None}
"""How many leading axes of a weight a layer's bit-widths keep; None is all of them."""


def unit_shape(granularity: Granularity, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a layer's bit-widths: () per tensor, (out,) per channel, the weight's own per parameter.

    >>> unit_shape("per_channel", (64, 3, 7, 7))
    (64,)
    """
    return tuple(shape[: KEPT_AXES[granularity]])


@dataclass(frozen=True)
class BitMap:
    """Bit-widths (0…16 or 32) by layer, in model order: uint8 arrays of ``unit_shape``.

    ``steps`` holds float32 step sizes (out | 1, columns) by layer where they were chosen with the widths (columns as in
    ``fairquant.quantize.quantizer``: one, or one per width present where widths differ within a channel), else nothing.
    ``scheme`` is that of the grids: zero points take room. ``codebook`` says which weights share one (``books``) where
    there are codebooks instead of grids. ``held`` are layers kept at their width for their sensitivity: no mode changes
    those.

    >>> bits = BitMap("per_channel", {"conv": np.array([2, 8], dtype=np.uint8), "fc": np.array([4], dtype=np.uint8)})
    >>> bits.average({"conv": (2, 3, 1, 1), "fc": (1, 6)}, by="channels")
    4.666666666666667
    """

    granularity: Granularity
    layers: Mapping[str, npt.NDArray[np.uint8]]
    steps: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    scheme: Scheme = "symmetric"
    codebook: Per | None = None
    held: tuple[str, ...] = ()

    @classmethod
    def filled(cls, shapes: Mapping[str, tuple[int, ...]], bits: int) -> BitMap:
        """Return one width for every layer of ``shapes``, per tensor."""
        return cls("per_tensor", {name: np.array(bits, dtype=np.uint8) for name in shapes})

    def broadcastable(self, layer: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Return ``layer``'s bit-widths with trailing axes of length 1, to broadcast against a weight of ``shape``."""
        bits = self.layers[layer]
        return bits.reshape(bits.shape + (1,) * (len(shape) - bits.ndim))

    def counts(self, layer: str) -> dict[int, int]:
        """Return how many units of ``layer`` have each width, ascending, widths without a unit left out."""
        found = np.bincount(self.layers[layer].reshape(-1))
        return {width: int(number) for width, number in enumerate(found.tolist()) if number}

    def widths(self) -> tuple[int, ...]:
        """Return the widths that occur, ascending."""
        return tuple(sorted({width for layer in self.layers for width in self.counts(layer)}))

    def average(self, shapes: Mapping[str, tuple[int, ...]], *, by: Weighting = "parameters") -> float:
        """Return the mean bit-width of all ``shapes``' layers, each weighed by its parameters, out channels or units.

        A channel or layer of mixed widths counts with its mean. Nothing to average raises ``ArtifactError``.
        """
        means = {name: float(bits.mean()) for name, bits in self.layers.items()}
        return self._weighted(means, shapes, by)

    def shares(self, shapes: Mapping[str, tuple[int, ...]], *, by: Weighting = "parameters") -> dict[int, float]:
        """Return the share in [0, 1] of parameters, out channels or units at each width that occurs; they sum to 1."""
        counts = {name: self.counts(name) for name in self.layers}
        part = {
            width: {name: counts[name].get(width, 0) / bits.size for name, bits in self.layers.items()}
            for width in self.widths()
        }
        return {width: self._weighted(layers, shapes, by) for width, layers in part.items()}

    def _weighted(self, values: Mapping[str, float], shapes: Mapping[str, tuple[int, ...]], by: Weighting) -> float:
        """Return the mean of one value per layer: units of a layer are all of one size, so its own mean is exact."""
        weigh = {"parameters": math.prod, "channels": lambda shape: shape[0]}
        weights = {name: bits.size if by == "units" else weigh[by](shapes[name]) for name, bits in self.layers.items()}
        total = sum(weights.values())
        if total == 0:
            raise ArtifactError("bit map: got no layers; allowed: at least one quantizable layer")
        return sum(values[name] * weight for name, weight in weights.items()) / total

    def save(self, path: str | Path) -> None:
        """Write ``path`` as safetensors, atomically; layer order and granularity stand in the header."""
        meta = {"kind": "bits", "granularity": self.granularity, "layers": list(self.layers)}
        meta |= {"scheme": self.scheme} if self.scheme != "symmetric" else {}
        meta |= {"codebook": self.codebook} if self.codebook is not None else {}
        meta |= {"held": list(self.held)} if self.held else {}
        steps = {f"{STEP}{name}": table for name, table in self.steps.items()}
        artifacts.write_tensors(path, {**self.layers, **steps}, meta=meta)

    @classmethod
    def load(cls, path: str | Path) -> BitMap:
        """Read what ``save`` wrote; another kind of file raises ``ArtifactError``."""
        arrays, meta = artifacts.read_tensors(path)
        if meta.get("kind") != "bits":
            raise ArtifactError(f"{path}: got a file of kind {meta.get('kind')!r}; allowed: the bits assign writes")
        layers = {name: arrays[name].astype(np.uint8, copy=False) for name in meta["layers"]}
        steps = {name: arrays[STEP + name] for name in meta["layers"] if STEP + name in arrays}
        return cls(
            meta["granularity"],
            layers,
            steps,
            scheme=meta.get("scheme", "symmetric"),
            codebook=meta.get("codebook"),
            held=tuple(meta.get("held", ())),
        )
