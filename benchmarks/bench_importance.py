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
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from fairquant import plugins
from fairquant.data.batches import iterate
from fairquant.data.store import Store
from fairquant.devices import resolve_device
from fairquant.importance.measure import measure_importance
from fairquant.models.build import build
from fairquant.models.spec import ModelSpec


def make_store(*, samples: int, groups: int, size: int) -> Store:
    """Return random images in memory, as evenly spread over the groups as they go."""
    random = np.random.default_rng(0)
    meta: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.25] * 3}
    return Store(
        images=random.integers(0, 256, (samples, size, size, 3), dtype=np.uint8),
        labels=random.integers(0, 2, samples),
        groups=np.arange(samples) % groups,
        splits=np.full(samples, "train"),
        ids=tuple(str(index) for index in range(samples)),
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


def timed(function: Any, *arguments: Any, **options: Any) -> float:
    """Return seconds: this process's CPU time, so that neighbours on the machine count less; the clock's on a GPU."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    function(*arguments, **options)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


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
    spec = ModelSpec(options.model, ("a", "b"), options.size, (0.5,) * 3, (0.25,) * 3)
    model = build(spec, seed=0).to(device, memory_format=torch.channels_last)
    settings = {"batch_size": options.batch, "device": device, "seed": 0, "progress": False}
    print("| metric | groups | plain, s | importance, s | ratio, median | ratio, min–max | peak memory, MB |")
    print("|---|---|---|---|---|---|---|")
    warm_up = make_store(samples=options.batch, groups=1, size=options.size)
    for metric in options.metric:
        plugin = plugins.load("importance", metric).Options
        given = plugin(**options.options) if plugin.model_fields else plugin()
        chosen = {**settings, "metric": metric, "options": given}
        for groups in options.groups:
            store = make_store(samples=options.samples, groups=groups, size=options.size)
            plain(model, warm_up, options.batch, device)
            measure_importance(model, warm_up, **chosen)
            pairs = []
            for _ in range(options.rounds):
                baseline = timed(plain, model, store, options.batch, device)
                pairs.append((baseline, timed(measure_importance, model, store, **chosen)))
            print(f"| {metric} | {groups} | {row(pairs)} |", flush=True)


def row(pairs: list[tuple[float, float]]) -> str:
    """Return the cells of pairs of seconds: medians, their ratio's median and range, the process's peak memory."""
    ratios = [measured / baseline for baseline, measured in pairs]
    seconds = " | ".join(f"{median(column):.2f}" for column in zip(*pairs, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return f"{seconds} | {median(ratios):.2f} | {min(ratios):.2f}–{max(ratios):.2f} | {peak}"


if __name__ == "__main__":
    main()
