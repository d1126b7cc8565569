"""Seconds to choose widths for all channels of a model under a budget, for each objective over nine groups.

    python benchmarks/bench_optimal.py [per_tensor|resnet18|resnet50 ...]

Losses are random like real ones: units of a ResNet's sizes, sensitivities log-normal over four decades, groups that
differ by half a factor e, a loss of 4⁻ᵇ at b = 0 … 8 bits. Prints one row of a markdown table per model, budget and
objective: seconds (best of three, on as many threads as the environment gives), the certified gap, the share of the
budget left unspent, and the peak of numpy's memory beside the losses (HiGHS keeps its own, which is not counted).
"""

from __future__ import annotations

import math
import sys
import time
import tracemalloc
from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt

from benchmarks.bench_assign import resnet_shapes
from benchmarks.table import Row, alternate
from fairquant.allocate.knapsack import Solution, minimise
from fairquant.allocate.objective import Objective

GROUPS = 9
WIDTHS = np.arange(9)
AVERAGE_BITS = (2.2, 4.0)


def unit_sizes(name: str) -> npt.NDArray[np.float64]:
    """Return the weights per unit: one unit per output channel, or per layer of resnet50 for per_tensor."""
    if name == "per_tensor":
        return np.array([math.prod(shape) for _, shape in resnet_shapes("resnet50")], dtype=np.float64)
    counts = [np.full(shape[0], math.prod(shape[1:])) for _, shape in resnet_shapes(name)]
    return np.concatenate(counts).astype(np.float64)


def random_losses(sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return predicted losses (G, U, W)."""
    random = np.random.default_rng(0)
    sensitivity = 10 ** random.normal(-3, 1, len(sizes)) * sizes / sizes.mean()
    group = np.exp(random.normal(0, 0.5, (GROUPS, len(sizes))) + random.normal(0, 0.3, (GROUPS, 1)))
    noise = np.exp(random.normal(0, 0.1, (1, len(sizes), len(WIDTHS))))
    losses: npt.NDArray[np.float32] = ((group * sensitivity)[:, :, None] * 4.0**-WIDTHS * noise).astype(np.float32)
    return losses


def objectives(losses: npt.NDArray[np.float32]) -> dict[str, Objective]:
    stakes = losses[:, :, 0].sum(axis=1, dtype=np.float64)
    return {
        "mean over groups": Objective.tail(GROUPS, 1 / GROUPS),
        "worst group": Objective.tail(GROUPS, 1.0),
        "mean of the worst half": Objective.tail(GROUPS, 2 / GROUPS),
        "worst share of its stake": Objective.tail(GROUPS, 1.0, stakes.sum() / stakes),
    }


def greedy(losses: npt.NDArray[np.float32], sizes: npt.NDArray[np.float64], bits: float) -> None:
    """Spend the same bits the plain way, for the mean group only: one bit after the other, best gain first."""
    mean = losses.astype(np.float64).mean(axis=0)
    gains = (mean[:, :-1] - mean[:, 1:]) / sizes[:, None]
    order = np.argsort(-gains.ravel(), kind="stable")
    spent = np.cumsum(np.repeat(sizes, len(WIDTHS) - 1)[order])
    np.bincount(order[spent <= bits * sizes.sum()] // (len(WIDTHS) - 1), minlength=len(sizes))


def rows(quick: bool) -> Iterator[Row]:
    """Yield the solver at 4 bits on average ÷ the greedy way, which proves nothing and knows the mean group only."""
    sizes = unit_sizes("resnet50")
    losses, costs = random_losses(sizes), (sizes[:, None] * WIDTHS)[None]
    for label, objective in objectives(losses).items():
        if not quick or label == "worst group":
            work = partial(minimise, losses, costs, [4.0 * sizes.sum()], objective)
            pairs = alternate(partial(greedy, losses, sizes, 4.0), work, rounds=5, warm_up=1)
            what = f"resnet50 per_channel, {GROUPS} groups, 9 widths: optimum for the {label} ÷ greedy for the mean"
            yield pairs.row(f"optimal/{label.replace(' ', '-')}", what, note=f"gap proved: {work().gap:.1e}")


def main(names: list[str]) -> None:
    print("| model | units | bits | objective | seconds | gap | unspent | MB |")
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        sizes = unit_sizes(name)
        losses, costs = random_losses(sizes), (sizes[:, None] * WIDTHS)[None]
        for bits in AVERAGE_BITS:
            for label, objective in objectives(losses).items():
                work = partial(minimise, losses, costs, [bits * sizes.sum()], objective)
                seconds, solution = best(work)
                tracemalloc.start()
                work()
                peak = tracemalloc.get_traced_memory()[1] / 1e6
                tracemalloc.stop()
                unspent = 1 - solution.spent[0] / (bits * sizes.sum())
                cells = [name, f"{len(sizes)}", f"{bits}", label, f"{seconds:.2f}", f"{solution.gap:.1e}"]
                print("| " + " | ".join([*cells, f"{unspent:.0e}", f"{peak:.0f}"]) + " |", flush=True)


def best(work: partial[Solution]) -> tuple[float, Solution]:
    """Return (seconds of the best of three, the solution)."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        solution = work()
        seconds.append(time.perf_counter() - start)
    return min(seconds), solution


if __name__ == "__main__":
    main(sys.argv[1:] or ["per_tensor", "resnet18", "resnet50"])
