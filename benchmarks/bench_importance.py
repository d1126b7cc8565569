"""Cost of measuring importance against one plain forward + backward pass over the same samples.

    python -m benchmarks.bench_importance [--groups 2 6 9] [--samples 1152] [--size 64] [--batch 64] [--rounds 5]

Both passes read the same images through the same batches in evaluation mode; the plain one takes every parameter's
gradient in mixed batches of all groups. They alternate; the ratio of each round is printed as its median.
"""

from __future__ import annotations

import argparse
import resource
import time
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

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
    parser.add_argument("--metric", default="grape")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--groups", type=int, nargs="+", default=[2, 6, 9])
    for name, default in (("samples", 1152), ("size", 64), ("batch", 64), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    spec = ModelSpec(options.model, ("a", "b"), options.size, (0.5,) * 3, (0.25,) * 3)
    model = build(spec, seed=0).to(device, memory_format=torch.channels_last)
    settings = {"metric": options.metric, "batch_size": options.batch, "device": device, "seed": 0, "progress": False}
    print("| groups | plain, s | importance, s | ratio, median | ratio, min–max | peak memory, MB |")
    print("|---|---|---|---|---|---|")
    for groups in options.groups:
        store = make_store(samples=options.samples, groups=groups, size=options.size)
        warm_up = make_store(samples=options.batch, groups=1, size=options.size)
        plain(model, warm_up, options.batch, device)
        measure_importance(model, warm_up, **settings)
        pairs = []
        for _ in range(options.rounds):
            baseline = timed(plain, model, store, options.batch, device)
            pairs.append((baseline, timed(measure_importance, model, store, **settings)))
        ratios = [measured / baseline for baseline, measured in pairs]
        seconds = [f"{median(column):.2f}" for column in zip(*pairs, strict=True)]
        spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"| {groups} | {seconds[0]} | {seconds[1]} | {median(ratios):.2f} | {spread} | {peak} |", flush=True)


if __name__ == "__main__":
    main()
