"""Widths that a mode gives whole layers by itself, and the layers whose width is not its to choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fairquant.allocate.bitmap import BitMap
    from fairquant.modes._job import QuantizeJob


def held_widths(job: QuantizeJob, layers: Sequence[str]) -> dict[str, int]:
    """Return layer → width of those among ``layers`` that no mode may change, in their order.

    Layers that ``assign.protect`` names keep its width; which ones are kept for their sensitivity was found by the
    assign stage, where the importance is, and comes with the assigned widths. Raises ``ConfigError`` for a protection
    that matches no layer.
    """
    from fairquant.allocate.protect import protected_widths

    held = protected_widths(job.protect, layers, job.roles)
    sensitive = {name: int(job.bits.layers[name].flat[0]) for name in job.bits.held}
    return {name: held.get(name, sensitive.get(name, 0)) for name in layers if name in held or name in sensitive}


def require_free(held: Mapping[str, int], layers: Sequence[str], mode: str) -> None:
    """Raise ``ConfigError`` where every one of ``layers`` is ``held``: nothing is left for a mode that finds widths."""
    from fairquant.errors import ConfigError

    if len(held) == len(layers):
        raise ConfigError(
            f"assign.protect: got every layer ({len(held)}) held at a width with quant_mode {mode}; allowed: at least "
            "one layer left to it, or quant_mode fair_static_qat"
        )


def whole_layers(job: QuantizeJob, width_of: Callable[[str], int]) -> BitMap:
    """Return one width for each layer: ``width_of`` its name, or the one it is held at.

    Step sizes will be one per layer where the assigned widths are per_tensor, else one per out channel: a width for
    every single weight says nothing when all are equal. Raises as ``held_widths`` does.
    """
    import numpy as np

    from fairquant.allocate.bitmap import BitMap, Granularity, unit_shape
    from fairquant.models.layers import quantizable_layers, weight_parameter

    shapes = {name: tuple(weight_parameter(layer).shape) for name, layer in quantizable_layers(job.model).items()}
    held = held_widths(job, list(shapes))
    granularity: Granularity = "per_tensor" if job.bits.granularity == "per_tensor" else "per_channel"
    widths = {
        name: np.full(unit_shape(granularity, shape), held[name] if name in held else width_of(name), dtype=np.uint8)
        for name, shape in shapes.items()
    }
    return BitMap(granularity, widths)
