"""Seconds of the evaluation's statistics, beside the plain way to compute them.

    python benchmarks/bench_statistics.py [intervals|summary]

``intervals``: 1,000 bootstrap resamples of every metric and gap of two models on 100,000 samples in 12 groups, with 2
and with 10 classes, best of three, and peak memory. The plain way draws the samples' numbers and counts them again in
every resample; it is run on 10 resamples and multiplied.
``summary``: every metric of one split of 3,000 samples, 114 classes and 6 groups (Fitzpatrick17k's), beside a plain
loop over groups and classes with a mask over the samples for each rate.
"""

from __future__ import annotations

import logging
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from benchmarks.table import Pairs, Row, alternate
from fairquant.evaluate.bootstrap import intervals
from fairquant.evaluate.report import compare_split
from fairquant.evaluate.summary import summarise
from fairquant.predictions import SplitPredictions

RESAMPLES = 1000
PLAIN_RESAMPLES = 10


def random_pair(n: int, n_classes: int, n_groups: int) -> tuple[SplitPredictions, SplitPredictions]:
    """Return two models, right in about 80 % of the samples, whose predictions differ in some 10 %."""
    random = np.random.default_rng(0)
    labels, groups = random.integers(0, n_classes, n), random.integers(0, n_groups, n)
    old = np.where(random.random(n) < 0.8, labels, random.integers(0, n_classes, n))
    new = np.where(random.random(n) < 0.9, old, random.integers(0, n_classes, n))
    before, after = (
        SplitPredictions(np.eye(n_classes, dtype=np.float32)[guess], labels, groups, np.arange(n))
        for guess in (old, new)
    )
    return before, after


def names(n_classes: int, n_groups: int) -> dict[str, list[str]]:
    return {"classes": [f"class {k}" for k in range(n_classes)], "groups": [f"group {g}" for g in range(n_groups)]}


def best(work: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def peak_mb(work: Callable[[], object]) -> float:
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / 1e6


def plain_resamples(before: SplitPredictions, after: SplitPredictions, options: dict[str, list[str]]) -> None:
    """Draw the numbers of the samples group by group and evaluate what was drawn, ``PLAIN_RESAMPLES`` times."""
    random = np.random.default_rng(0)
    members = [np.flatnonzero(before.groups == g) for g in range(len(options["groups"]))]
    for _ in range(PLAIN_RESAMPLES):
        index = np.concatenate([random.choice(rows, len(rows)) for rows in members])
        parts = (
            SplitPredictions(part.logits[index], part.labels[index], part.groups[index], index)
            for part in (before, after)
        )
        compare_split(*parts, **options)


def plain_rates(part: SplitPredictions, n_classes: int, n_groups: int) -> dict[str, np.ndarray]:
    """Compute accuracy, TPR and FPR of every group and class with a mask over the samples for each."""
    predicted = part.predicted
    rates = {name: np.full((n_groups, n_classes), np.nan) for name in ("accuracy", "tpr", "fpr")}
    for g in range(n_groups):
        member = part.groups == g
        rates["accuracy"][g] = (predicted == part.labels)[member].mean()
        for k in range(n_classes):
            for name, rows in (("tpr", member & (part.labels == k)), ("fpr", member & (part.labels != k))):
                if rows.any():
                    rates[name][g, k] = (predicted[rows] == k).mean()
    return rates


def bench_intervals() -> None:
    print("| samples | groups | classes | resamples | intervals s | MB | plain s | plain / ours |")
    print("|---|---|---|---|---|---|---|---|")
    settings = {"parity": True, "resamples": RESAMPLES, "confidence": 0.95, "seed": 0, "positive_class": "class 1"}
    for n_classes in (2, 10):
        before, after = random_pair(100_000, n_classes, 12)
        options = names(n_classes, 12)
        work = partial(intervals, before, after, **options, **settings)
        ours, memory = best(work, 3), peak_mb(work)
        plain = best(partial(plain_resamples, before, after, options), 1) * RESAMPLES / PLAIN_RESAMPLES
        cells = ["100,000", "12", str(n_classes), f"{RESAMPLES:,}", f"{ours:.2f}", f"{memory:.0f}", f"{plain:.0f}"]
        print("| " + " | ".join([*cells, f"{plain / ours:.0f}"]) + " |", flush=True)


def bench_summary() -> None:
    print("| samples | groups | classes | summarise ms | plain loop ms | plain / ours |")
    print("|---|---|---|---|---|---|")
    part, _ = random_pair(3000, 114, 6)
    ours = best(partial(summarise, part, **names(114, 6)), 10) * 1e3
    plain = best(partial(plain_rates, part, 114, 6), 5) * 1e3
    print(f"| 3,000 | 6 | 114 | {ours:.1f} | {plain:.1f} | {plain / ours:.1f} |", flush=True)


def rows(quick: bool) -> Iterator[Row]:
    """Yield the intervals and the summary ÷ the plain ways."""
    logging.disable(logging.WARNING)  # with 114 classes many a group lacks one
    settings = {"parity": True, "resamples": RESAMPLES, "confidence": 0.95, "seed": 0, "positive_class": "class 1"}
    for n_classes in (2,) if quick else (2, 10):
        before, after = random_pair(100_000, n_classes, 12)
        options = names(n_classes, 12)
        plain = partial(plain_resamples, before, after, options)
        pairs = alternate(plain, partial(intervals, before, after, **options, **settings), rounds=5, warm_up=1)
        scaled = Pairs(tuple(value * RESAMPLES / PLAIN_RESAMPLES for value in pairs.baseline), pairs.ours)
        what = f"{RESAMPLES:,} resamples, 100,000 samples, 12 groups, {n_classes} classes ÷ drawing samples each time"
        note = f"plain: {PLAIN_RESAMPLES} resamples × {RESAMPLES // PLAIN_RESAMPLES}"
        yield scaled.row(f"statistics/intervals-{n_classes}-classes", what, wanted=0.05, note=note)
    part, _ = random_pair(3000, 114, 6)
    pairs = alternate(
        partial(plain_rates, part, 114, 6), partial(summarise, part, **names(114, 6)), rounds=25 if quick else 50
    )
    what = "all metrics of 3,000 samples, 114 classes, 6 groups ÷ a loop over groups and classes"
    yield pairs.row("statistics/summary", what, wanted=0.2)


def main(chosen: list[str]) -> None:
    logging.disable(logging.WARNING)  # with 114 classes many a group lacks one
    for name, bench in (("intervals", bench_intervals), ("summary", bench_summary)):
        if name in chosen:
            bench()


if __name__ == "__main__":
    main(sys.argv[1:] or ["intervals", "summary"])
