"""The assign stage's one function: importance maps per group → reduce → units → allocate → bit-widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fairquant import plugins
from fairquant.allocate.bitmap import BitMap, unit_shape
from fairquant.allocate.info import ModelInfo
from fairquant.allocate.protect import protected_widths
from fairquant.allocate.units import Units, unit_importance
from fairquant.config import Config
from fairquant.errors import ArtifactError, UserError
from fairquant.importance.maps import ImportanceMaps, check_finite

Reduce = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


def assign_bits(maps: ImportanceMaps, model_info: Mapping[str, Any], config: Config) -> BitMap:
    """Return the bit-width of every unit of every quantizable layer, layers in model order.

    Shares of levels are shares of the unprotected units of the whole model. Works layer by layer, so that beside
    ``maps`` only one reduced importance per weight is held. Raises ``UserError``: maps that are not of this model, NaN
    or infinity in one (the layer is named), a reducer that refuses the groups, a protection that matches nothing.
    """
    info = ModelInfo.from_json(model_info)
    _check_layers(maps, info)
    held = protected_widths(config.assign.protect, list(info.shapes), info.roles)
    units = rank_units(maps, {name: shape for name, shape in info.shapes.items() if name not in held}, config)
    allocator = plugins.load("allocator", config.allocator)
    bits = dict(units.scatter(allocator.allocate(units.importance, units.sizes, config.assign)).layers)
    for name, width in held.items():
        bits[name] = np.full(unit_shape(config.granularity, info.shapes[name]), width, dtype=np.uint8)
    return BitMap(config.granularity, {name: bits[name] for name in info.shapes})


def rank_units(maps: ImportanceMaps, shapes: Mapping[str, tuple[int, ...]], config: Config) -> Units:
    """Return the units of the layers in ``shapes`` with their importance over groups; the layers must have maps."""
    reduce = _reducer(maps, config)
    importance = {name: unit_importance(_reduced(reduce, maps, name), config.granularity) for name in shapes}
    return Units.gather(config.granularity, shapes, importance)


def _check_layers(maps: ImportanceMaps, info: ModelInfo) -> None:
    """Raise ``ArtifactError`` unless the maps are of the model's layers."""
    for name in sorted(set(info.shapes) ^ set(maps.layers)):
        where = "a map for" if name in maps.layers else "no map for"
        raise ArtifactError(f"importance: got {where} layer {name}; allowed: one map for each layer of the model")
    for name, shape in info.shapes.items():
        if maps.layers[name].shape != (len(maps.groups), *shape):
            raise ArtifactError(
                f"importance of layer {name}: got shape {maps.layers[name].shape}; "
                f"allowed: {(len(maps.groups), *shape)} (groups, then the weight's shape)"
            )


def _reducer(maps: ImportanceMaps, config: Config) -> Reduce:
    """Return the chosen reducer as a function of one layer's maps, with its options and the model's totals bound."""
    plugin = plugins.load("reducer", config.reducer)
    options = config.options("reducer", config.reducer)
    if hasattr(plugin, "check_groups"):
        plugin.check_groups(options, maps.groups)
    totals = _totals(maps)

    def reduce(importance: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        reduced: npt.NDArray[np.float32] = plugin.reduce(importance, options, groups=maps.groups, totals=totals)
        return reduced

    return reduce


def _totals(maps: ImportanceMaps) -> npt.NDArray[np.float64]:
    """Return ΣI_g over all layers, protected ones included; NaN or infinity in any raises ``UserError``."""
    totals = np.zeros(len(maps.groups))
    for name, layer in maps.layers.items():
        with np.errstate(invalid="ignore"):
            sums = layer.reshape(len(maps.groups), -1).sum(axis=1, dtype=np.float64)
        for group, total in zip(maps.groups, sums.tolist(), strict=True):
            check_finite(name, group, math.isfinite(total))
        totals += sums
    return totals


def _reduced(reduce: Reduce, maps: ImportanceMaps, layer: str) -> npt.NDArray[np.float32]:
    """Reduce one layer's maps; a mistake in them names the layer."""
    try:
        return reduce(maps.layers[layer])
    except UserError as error:
        raise UserError(f"layer {layer}: {error}") from None
