"""Importance maps per group → one importance per weight → units in the order an allocator ranks them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from fairquant import plugins
from fairquant.allocate.units import Units, unit_importance
from fairquant.config import Config
from fairquant.errors import UserError
from fairquant.importance.maps import ImportanceMaps, check_finite

Reduce = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


def rank_units(maps: ImportanceMaps, shapes: Mapping[str, tuple[int, ...]], config: Config) -> Units:
    """Return the units of the layers in ``shapes`` with their importance over groups; the layers must have maps."""
    reduce = reducer(maps, config)
    importance = {name: unit_importance(reduced(reduce, maps, name), config.granularity) for name in shapes}
    return Units.gather(config.granularity, shapes, importance)


def reducer(maps: ImportanceMaps, config: Config) -> Reduce:
    """Return the chosen reducer as a function of one layer's maps, with its options and the model's totals bound."""
    plugin = plugins.load("reducer", config.reducer)
    options = config.options("reducer", config.reducer)
    if hasattr(plugin, "check_groups"):
        plugin.check_groups(options, maps.groups)
    sums = totals(maps)

    def reduce(importance: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        reduced: npt.NDArray[np.float32] = plugin.reduce(importance, options, groups=maps.groups, totals=sums)
        return reduced

    return reduce


def totals(maps: ImportanceMaps) -> npt.NDArray[np.float64]:
    """Return ΣI_g over all layers, protected ones included; NaN or infinity in any raises ``UserError``."""
    result = np.zeros(len(maps.groups))
    for name, layer in maps.layers.items():
        with np.errstate(invalid="ignore"):
            sums = layer.reshape(len(maps.groups), -1).sum(axis=1, dtype=np.float64)
        for group, total in zip(maps.groups, sums.tolist(), strict=True):
            check_finite(name, group, math.isfinite(total))
        result += sums
    return result


def reduced(reduce: Reduce, maps: ImportanceMaps, layer: str) -> npt.NDArray[np.float32]:
    """Reduce one layer's maps; a mistake in them names the layer."""
    try:
        return reduce(maps.layers[layer])
    except UserError as error:
        raise UserError(f"layer {layer}: {error}") from None
