"""Small models for the assign stage: shapes, importance maps, weights, and what widths cost, counted the long way."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from fairquant.allocate.bitmap import BitMap, unit_shape
from fairquant.config import Config
from fairquant.cost.bops import bops
from fairquant.cost.size import size_report
from fairquant.importance.maps import ImportanceMaps
from fairquant.quantize.ladder import quantize_rows, step_sizes

Shapes = Mapping[str, tuple[int, ...]]
SHAPES: Shapes = {"conv": (3, 2, 1, 1), "mid": (2, 3, 1, 1), "fc": (2, 2)}
GROUPS = ("a", "b", "c")


def model_info(shapes: Shapes = SHAPES, *, rest: int = 3, seed: int = 0) -> dict[str, Any]:
    """Return models/pretrained.json of a made-up model; a layer's multiply-accumulates are whole per weight."""
    rng = np.random.default_rng(seed)
    names = list(shapes)
    return {
        "layers": {
            name: {"shape": list(shape), "kind": "conv2d" if len(shape) == 4 else "linear"}
            for name, shape in shapes.items()
        },
        "roles": {"first": names[0], "last": names[-1], "classifier": names[-1]},
        "parameters": {"rest": rest},
        "macs": {name: int(rng.integers(1, 50)) * math.prod(shape) for name, shape in shapes.items()},
    }


def importance_maps(
    shapes: Shapes = SHAPES, groups: Sequence[str] = GROUPS, *, metric: str = "fisher", seed: int = 0
) -> ImportanceMaps:
    """Return long-tailed maps of ``metric``."""
    rng = np.random.default_rng(seed)
    layers = {name: rng.gamma(0.5, size=(len(groups), *shape)).astype(np.float32) for name, shape in shapes.items()}
    return ImportanceMaps(tuple(groups), (5,) * len(groups), layers, {"metric": metric})


def weights(shapes: Shapes = SHAPES, *, seed: int = 1) -> dict[str, np.ndarray]:
    """Return normal weights by layer."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def random_shapes(rng: np.random.Generator, layers: int = 3, largest: int = 5) -> dict[str, tuple[int, ...]]:
    """Return a convolution, then linear layers."""
    first = tuple(rng.integers(1, largest, size=2).tolist())
    shapes = {"conv": (*first, 3, 3)}
    return shapes | {f"fc{n}": tuple(rng.integers(1, 2 * largest, size=2).tolist()) for n in range(1, layers)}


def loss_table(
    weight: np.ndarray, maps: np.ndarray, config: Config, widths: Sequence[int], metric: str, *, weigh: Any = None
) -> np.ndarray:
    """Return predicted losses (G, U, W) of one layer in float64 by plain loops: the oracle of ``layer_losses``."""
    whole = config.granularity == "per_tensor"
    rows = torch.from_numpy(weight.reshape(1 if whole else len(weight), -1))
    steps = step_sizes(
        rows, widths, method=config.quantize.scale, percentile=config.quantize.percentile, importance=weigh
    )
    units = 1 if whole else len(weight)
    table = np.zeros((len(maps), units, len(widths)))
    for unit, (column, width) in itertools.product(range(units), enumerate(widths)):
        w = rows[unit].double().numpy()
        delta = quantize_rows(rows[[unit]], width, steps[[unit], column : column + 1]).double().numpy()[0] - w
        for group, importance in enumerate(maps.reshape(len(maps), units, -1)[:, unit].astype(np.float64)):
            table[group, unit, column] = sum(
                one_loss(metric, i, d, x) for i, d, x in zip(importance, delta, w, strict=True)
            )
    return table


def one_loss(metric: str, importance: float, delta: float, weight: float) -> float:
    """Return what one weight is predicted to lose; a map with w² in it says nothing about a weight of 0."""
    if metric in {"grape", "hawq"}:
        ratio = delta / weight if weight else 0.0
        return importance * ratio**2 * (0.5 if metric == "hawq" else 1.0)
    return {"fisher": 0.5 * importance * delta**2, "gradient": importance * abs(delta)}[metric]


def all_bitmaps(granularity: str, shapes: Shapes, widths: Sequence[int], held: Mapping[str, int]) -> Iterator[BitMap]:
    """Yield every allocation there is."""
    numbers = {name: math.prod(unit_shape(granularity, shape)) for name, shape in shapes.items() if name not in held}  # type: ignore[arg-type]
    for choice in itertools.product(widths, repeat=sum(numbers.values())):
        left = iter(choice)
        yield bitmap_of(
            granularity, shapes, held, {name: [next(left) for _ in range(n)] for name, n in numbers.items()}
        )


def bitmap_of(granularity: str, shapes: Shapes, held: Mapping[str, int], free: Mapping[str, Sequence[int]]) -> BitMap:
    """Return a map of ``free`` widths and ``held`` layers, in model order."""
    layers = {}
    for name, shape in shapes.items():
        kept = unit_shape(granularity, shape)  # type: ignore[arg-type]
        value = np.full(kept, held[name]) if name in held else np.array(free[name]).reshape(kept)
        layers[name] = value.astype(np.uint8)
    return BitMap(granularity, layers)  # type: ignore[arg-type]


def spending(bits: BitMap, info: Mapping[str, Any]) -> dict[str, float]:
    """Return what a map costs, by key of the budget section, from the reports the user sees."""
    shapes = {name: tuple(layer["shape"]) for name, layer in info["layers"].items()}
    return {
        "avg_bits": bits.average(shapes),
        "size_mb": size_report(bits, shapes, rest=info["parameters"]["rest"]).packed / 1e6,
        "gbops": bops(info["macs"], bits) / 1e9,
    }


def fits(bits: BitMap, info: Mapping[str, Any], budget: Mapping[str, float]) -> bool:
    """Return whether a map keeps every budget; averages and operations are compared as exact fractions."""
    shapes = {name: tuple(layer["shape"]) for name, layer in info["layers"].items()}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    sums = {name: sum(width * number for width, number in bits.counts(name).items()) for name in shapes}
    exact = {
        "avg_bits": Fraction(sum(sums[n] * sizes[n] // bits.layers[n].size for n in shapes), sum(sizes.values())),
        "size_mb": Fraction(size_report(bits, shapes, rest=info["parameters"]["rest"]).packed, 10**6),
        "gbops": sum(Fraction(32 * info["macs"][n] * sums[n], bits.layers[n].size) for n in shapes) / 10**9,
    }
    return all(exact[key] <= Fraction(repr(float(limit))) for key, limit in budget.items())
