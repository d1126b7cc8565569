"""Seconds and memory to choose a width for every single weight within a budget, and how near the optimum it is proved.

    python benchmarks/bench_per_param.py [resnet18|resnet50] [average bits]

Weights are Gaussian, clipped as their width asks for; maps of nine groups are log-normal (most of the importance in few
weights, different ones for each group) and scaled so that every group binds, the hardest case. Widths are 0 to 8 bits.
Prints one row of a markdown table per objective: wall and processor seconds of one thread, peak memory beside weights
and maps, the proved gap, and the bits left of the budget.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt

from benchmarks.bench_assign import GROUPS, resnet_shapes
from benchmarks.table import Row, alternate
from fairquant.allocate.objective import Objective
from fairquant.assign.per_param import StreamedLayer, minimise_streamed

Single = npt.NDArray[np.float32]

WIDTHS = tuple(range(9))
CLIPPED_AT = (1.0, 0.8, 1.5, 2.2, 2.8, 3.3, 3.8, 4.2, 4.6)
"""Of a Gaussian's standard deviation, by width: near the least squared error."""
CAPS = {"mean": 1 / GROUPS, "cvar": 0.3, "max": 1.0}


def random_layers(name: str) -> Iterator[StreamedLayer]:
    """Yield layers with weights, maps and step sizes."""
    generator = np.random.default_rng(0)
    for layer, shape in resnet_shapes(name):
        rows, columns = shape[0], math.prod(shape[1:])
        deviation = np.float32(math.sqrt(2 / columns))
        weight = generator.standard_normal((rows, columns), dtype=np.float32) * deviation
        shared = 2 * generator.standard_normal((rows, columns), dtype=np.float32) + np.float32(generator.normal())
        maps = np.empty((GROUPS, rows, columns), np.float32)
        for own in maps:
            np.exp(shared + np.float32(0.7) * generator.standard_normal(shared.shape, dtype=np.float32), out=own)
        largest = [2.0 ** (width - 1) - 1 if width > 1 else 1.0 for width in WIDTHS]
        steps = np.array(CLIPPED_AT) / largest * deviation
        yield StreamedLayer(layer, weight, maps, np.repeat(steps[None].astype(np.float32), rows, axis=0))


def half_square(delta: Single, weight: Single) -> Single:
    """Return what Fisher information is multiplied by."""
    return np.float32(0.5) * delta * delta


def peak_mb() -> float:
    """Return the most memory the process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def problem(name: str) -> tuple[list[StreamedLayer], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return layers, the scale of each group and the costs (1, L, W)."""
    layers = list(random_layers(name))
    weights = sum(layer.weight.size for layer in layers)
    scale = weights / np.array([sum(float(layer.maps[g].sum()) for layer in layers) for g in range(GROUPS)])
    return layers, scale, np.tile(np.array(WIDTHS, np.float64), (1, len(layers), 1))


def ranked(layers: list[StreamedLayer]) -> None:
    """Rank all weights by their importance to the mean group, as one does to give them levels."""
    importance = np.concatenate([layer.maps.astype(np.float64).mean(axis=0).ravel() for layer in layers])
    np.argsort(importance, kind="stable")


def rows(quick: bool) -> Iterator[Row]:
    """Yield resnet18's 11.7 M weights, 4 bits on average ÷ one float64 argsort of their importance."""
    layers, scale, costs = problem("resnet18")
    limit = 4.0 * sum(layer.weight.size for layer in layers)
    for name, cap in [("max", CAPS["max"])] if quick else CAPS.items():
        objective = Objective.tail(GROUPS, cap, scale)
        work = partial(minimise_streamed, layers, WIDTHS, costs, [limit], objective, increase=half_square)
        pairs = alternate(partial(ranked, layers), work, rounds=3, warm_up=0)
        what = f"resnet18 per_param, {GROUPS} groups, 9 widths: optimum for {name} ÷ mean and one argsort"
        yield pairs.row(f"per_param/resnet18-{name}", what)


def main(name: str = "resnet50", average: str = "4") -> None:
    layers, scale, costs = problem(name)
    weights = sum(layer.weight.size for layer in layers)
    limit = float(average) * weights
    print("| model | weights | average bits | objective | s | CPU s | MB | gap | bits left |")
    print("|---|---|---|---|---|---|---|---|---|")
    before = peak_mb()
    for objective, cap in CAPS.items():
        start, worked = time.perf_counter(), time.process_time()
        found = minimise_streamed(
            layers, WIDTHS, costs, [limit], Objective.tail(GROUPS, cap, scale), increase=half_square
        )
        seconds, cpu = time.perf_counter() - start, time.process_time() - worked
        cells = [name, f"{weights / 1e6:.1f} M", average, objective, f"{seconds:.1f}", f"{cpu:.1f}"]
        cells += [f"{peak_mb() - before:.0f}", f"{found.gap:.1e}", f"{limit - found.spent[0]:.1f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
