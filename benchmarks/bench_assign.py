"""Seconds to assign bits from random importance maps of nine groups, beside a plain argsort over all units.

    python benchmarks/bench_assign.py [resnet18|resnet50]

Prints one row of a markdown table per granularity and reducer: seconds (best of three) and peak memory beside the maps,
then both for the plain way: the float64 mean over groups and one stable ``numpy.argsort``, without protection.
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from benchmarks.table import Row, alternate
from fairquant.assign.run import assign_bits
from fairquant.config import Config
from fairquant.importance.maps import ImportanceMaps

GROUPS = 9
BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
Shape = tuple[int, ...]


def resnet_shapes(name: str, classes: int = 1000) -> Iterator[tuple[str, Shape]]:
    """Yield (layer, weight shape) of a torchvision ResNet: 11.7 M weights for resnet18, 25.5 M for resnet50."""
    expansion = 4 if name == "resnet50" else 1
    yield "conv1", (64, 3, 7, 7)
    channels = 64
    for stage, repeats in enumerate(BLOCKS[name], start=1):
        width = 32 * 2**stage
        for block in range(repeats):
            prefix = f"layer{stage}.{block}"
            if expansion == 4:
                yield f"{prefix}.conv1", (width, channels, 1, 1)
                yield f"{prefix}.conv2", (width, width, 3, 3)
                yield f"{prefix}.conv3", (4 * width, width, 1, 1)
            else:
                yield f"{prefix}.conv1", (width, channels, 3, 3)
                yield f"{prefix}.conv2", (width, width, 3, 3)
            if channels != expansion * width:
                yield f"{prefix}.downsample.0", (expansion * width, channels, 1, 1)
            channels = expansion * width
    yield "fc", (classes, channels)


def argsort_reference(maps: ImportanceMaps, granularity: str) -> None:
    """Assign 2/4/8 bits the plain way: float64 mean over groups, one argsort over all units."""
    rows = []
    for layer in maps.layers.values():
        reduced = layer.astype(np.float64).mean(axis=0)
        units = {"per_tensor": 1, "per_channel": len(reduced), "per_param": reduced.size}[granularity]
        rows.append(reduced.reshape(units, -1).mean(axis=1))
    importance = np.concatenate(rows)
    order = np.argsort(importance, kind="stable")
    bits = np.empty(len(importance), dtype=np.uint8)
    cuts = [round(0.2 * len(order)), round(0.6 * len(order))]
    for width, part in zip((2, 4, 8), np.split(order, cuts), strict=True):
        bits[part] = width


def measure(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return (seconds of the best of ``repeats``, peak MB of memory taken in one more)."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return min(seconds), peak / 1e6


def random_case(name: str) -> tuple[ImportanceMaps, dict[str, object]]:
    """Return importance maps of nine groups and what the pretrain stage would say of the model."""
    shapes = dict(resnet_shapes(name))
    generator = np.random.default_rng(0)
    layers = {layer: generator.random((GROUPS, *shape), dtype=np.float32) for layer, shape in shapes.items()}
    info: dict[str, object] = {
        "layers": {layer: {"shape": shape, "kind": "conv2d"} for layer, shape in shapes.items()},
        "roles": {},
        "parameters": {"rest": 0},
        "macs": dict.fromkeys(shapes, 0),
    }
    return ImportanceMaps(tuple(f"g{i}" for i in range(GROUPS)), (1,) * GROUPS, layers), info


def rows(quick: bool) -> Iterator[Row]:
    """Yield assign ÷ one float64 argsort of the same units, for what one runs most and what is largest."""
    cases = [("resnet18", "per_param", "balanced"), ("resnet50", "per_channel", "cvar")]
    for name, granularity, reducer in cases if quick else [*cases, ("resnet50", "per_param", "cvar")]:
        maps, info = random_case(name)
        work = partial(assign_bits, maps, info, Config(granularity=granularity, reducer=reducer))
        plain = partial(argsort_reference, maps, granularity)
        rounds = 11 if granularity == "per_channel" else 3  # short, and bound by memory, which neighbours want as well
        pairs = alternate(plain, work, rounds=rounds, warm_up=1)
        what = f"{name} {granularity}, {GROUPS} groups: levels by {reducer} ÷ mean and one argsort"
        yield pairs.row(
            f"assign/{name}-{granularity}-{reducer}", what, wanted=1.0 if granularity == "per_param" else None
        )


def main(names: list[str]) -> None:
    print("| model | weights | granularity | reducer | assign s | MB | argsort s | MB | time ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in names:
        maps, info = random_case(name)
        weights = sum(layer[0].size for layer in maps.layers.values()) / 1e6
        for granularity in ("per_tensor", "per_channel", "per_param"):
            plain, plain_mb = measure(partial(argsort_reference, maps, granularity), 1)
            for reducer in ("balanced", "cvar"):
                config = Config(granularity=granularity, reducer=reducer)
                ours, ours_mb = measure(partial(assign_bits, maps, info, config), 3)
                cells = [name, f"{weights:.1f} M", granularity, reducer, f"{ours:.2f}", f"{ours_mb:.0f}"]
                cells += [f"{plain:.2f}", f"{plain_mb:.0f}", f"{ours / plain:.2f}"]
                print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["resnet18", "resnet50"])
