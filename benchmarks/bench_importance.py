"""Cost of measuring importance against one plain forward + backward pass over the same samples.

    python -m benchmarks.bench_importance [--groups 2 6 9] [--samples 1152] [--size 64] [--batch 64] [--rounds 5]
    python -m benchmarks.bench_importance --metric grape hawq --options '{"samples": 2}' --groups 2 --samples 256
    python -m benchmarks.bench_importance --metric fisher --groups 2 --samples 256 [--size 32]

Both passes read the same images through the same batches in evaluation mode; the plain one takes every parameter's
gradient in mixed batches of all groups. They alternate; the ratio of each round is printed as its median. ``--options``
go to those of the metrics that have settings.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.table import CLOCKS, Pairs, Row, alternate
from fairquant import plugins
from fairquant.data.batches import iterate
from fairquant.data.store import Store
from fairquant.devices import resolve_device
from fairquant.importance.measure import measure_importance
from fairquant.models.build import build
from fairquant.models.spec import ModelSpec


class Sizes(NamedTuple):
    """How much both passes read: images in all, their pixels a side, and how many make a batch."""

    samples: int
    size: int
    batch: int


ROWS: tuple[tuple[str, int, int, float | None], ...] = (
    ("grape", 2, 512, 1.15),
    ("grape", 6, 768, 1.15),
    ("grape", 9, 1152, 1.15),
    ("fisher", 2, 256, 2.5),
    ("hawq", 2, 128, None),
)
"""Metric, groups, samples, the largest ratio wanted."""


def make_store(*, samples: int, groups: int, size: int) -> Store:
    """Return random images in memory, as evenly spread over the groups as they go."""
    random = np.random.default_rng(0)
    meta: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.25] * 3}
    return Store(
        images=random.integers(0, 256, (samples, size, size, 3), dtype=np.uint8),
        labels=random.integers(0, 2, samples),
        groups=np.arange(samples) % groups,
        splits=np.full(samples, "train"),
        classes=("a", "b"),
        group_names=tuple(f"g{index}" for index in range(groups)),
        meta=meta,
        columns={},
    )


def plain(model: nn.Module, store: Store, batch: int, device: torch.device) -> None:
    """One forward + backward pass over the training images."""
    model.eval()
    for item in iterate(store, store.indices("train"), batch_size=batch, device=device):
        model.zero_grad()
        F.cross_entropy(model(item.images), item.labels).backward()


def alternated(
    metric: str, options: dict[str, Any], groups: int, model: nn.Module, sizes: Sizes, rounds: int, device: torch.device
) -> Pairs:
    """Return the seconds of plain passes and of measuring ``metric``, after one of each on a single batch."""
    plugin = plugins.load("importance", metric).Options
    given = plugin(**options) if plugin.model_fields else plugin()
    settings = {"batch_size": sizes.batch, "device": device, "seed": 0, "progress": False}
    settings |= {"metric": metric, "options": given}
    warm_up = make_store(samples=sizes.batch, groups=1, size=sizes.size)
    plain(model, warm_up, sizes.batch, device)
    measure_importance(model, warm_up, **settings)
    store = make_store(samples=sizes.samples, groups=groups, size=sizes.size)
    return alternate(
        partial(plain, model, store, sizes.batch, device),
        partial(measure_importance, model, store, **settings),
        rounds=rounds,
        clock=gpu_clock if device.type == "cuda" else CLOCKS["cpu"],
        warm_up=0,
    )


def gpu_clock() -> float:
    """Return the wall clock's seconds once the GPU has done what it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def make_model(name: str, size: int, device: torch.device) -> nn.Module:
    spec = ModelSpec(name, ("a", "b"), size, (0.5,) * 3, (0.25,) * 3)
    return build(spec, seed=0).to(device, memory_format=torch.channels_last)


def rows(quick: bool) -> Iterator[Row]:
    """Yield importance ÷ one plain forward and backward pass over the same samples, resnet18 at 64 px, batch 64."""
    device = torch.device("cpu")
    model = make_model("resnet18", 64, device)
    for metric, groups, samples, wanted in ROWS[:1] if quick else ROWS:
        pairs = alternated(metric, {}, groups, model, Sizes(samples, 64, 64), 3, device)
        what = f"resnet18 64 px, {metric}, {groups} groups, {samples} samples ÷ plain forward and backward"
        yield pairs.row(f"importance/{metric}-{groups}-groups", what, wanted=wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--metric", nargs="+", default=["grape"], choices=plugins.names("importance"))
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--groups", type=int, nargs="+", default=[2, 6, 9])
    for name, default in (("samples", 1152), ("size", 64), ("batch", 64), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    model = make_model(options.model, options.size, device)
    sizes = Sizes(options.samples, options.size, options.batch)
    print("| metric | groups | plain, s | importance, s | ratio, median | ratio, min–max | peak memory, MB |")
    print("|---|---|---|---|---|---|---|")
    for metric in options.metric:
        for groups in options.groups:
            pairs = alternated(metric, options.options, groups, model, sizes, options.rounds, device)
            print(f"| {metric} | {groups} | {cells(pairs)} |", flush=True)


def cells(pairs: Pairs) -> str:
    """Return the cells of pairs of seconds: medians, their ratio's median and range, the process's peak memory."""
    seconds = " | ".join(f"{median(column):.2f}" for column in (pairs.baseline, pairs.ours))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return f"{seconds} | {pairs.ratio:.2f} | {min(pairs.ratios):.2f}–{max(pairs.ratios):.2f} | {peak}"


if __name__ == "__main__":
    main()
