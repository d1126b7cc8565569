"""What every benchmark measures alike: two ways of doing the same work by turns, and one row for the pair.

A row's ratio is ours ÷ baseline, so that smaller is better whatever the unit. It is the median over rounds; each round
runs both once, in an order that swaps from round to round, so that a machine that slows down slows both. A benchmark
``bench_*.py`` offers ``rows(quick)``, which yields its rows: the same work under the same id whether quick or not;
quick only leaves out rows and rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"cpu": time.process_time, "wall": time.perf_counter}
"""Processor seconds of this process count neighbours on the machine least; a GPU's work shows on the wall alone."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    ``id`` names the work and never changes its meaning; ``ours`` and ``baseline`` are medians in ``unit``; ``ratio``,
    ``low`` and ``high`` are the median, least and largest of the rounds' ratios; ``wanted`` is the largest ratio the
    project promises, None where it promises none.
    """

    id: str
    what: str
    ours: float
    baseline: float
    ratio: float
    low: float
    high: float
    rounds: int
    wanted: float | None = None
    unit: str = "s"
    note: str = ""


@dataclass(frozen=True)
class Pairs:
    """What the two ways took, round by round."""

    baseline: tuple[float, ...]
    ours: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Return ours ÷ baseline of every round."""
        return tuple(ours / baseline for baseline, ours in zip(self.baseline, self.ours, strict=True))

    @property
    def ratio(self) -> float:
        """Return the median of the rounds' ratios."""
        return statistics.median(self.ratios)

    def row(self, id: str, what: str, *, wanted: float | None = None, unit: str = "s", note: str = "") -> Row:
        """Return the pairs as a row.

        >>> row = Pairs((2.0, 2.0, 4.0), (1.0, 3.0, 4.0)).row("demo", "a demonstration", wanted=1.2)
        >>> row.ours, row.baseline, row.ratio, row.low, row.high, row.rounds
        (3.0, 2.0, 1.0, 0.5, 1.5, 3)
        """
        ours, baseline = statistics.median(self.ours), statistics.median(self.baseline)
        ratios = self.ratios
        return Row(
            id, what, ours, baseline, self.ratio, min(ratios), max(ratios), len(ratios), wanted, unit, note
        )  # fmt: skip


def alternate(
    baseline: Callable[[], object],
    ours: Callable[[], object],
    *,
    rounds: int,
    clock: Clock = time.process_time,
    warm_up: int = 2,
) -> Pairs:
    """Run both ``warm_up`` times untimed and ``rounds`` times timed, in an order that swaps from round to round."""
    pairs: list[tuple[float, float]] = []
    for number in range(rounds + warm_up):
        if number % 2:
            first, second = seconds(baseline, clock), seconds(ours, clock)
        else:
            second, first = seconds(ours, clock), seconds(baseline, clock)
        pairs.append((first, second))
    before, after = zip(*pairs[warm_up:], strict=True)
    return Pairs(before, after)


def seconds(work: Callable[[], object], clock: Clock) -> float:
    """Return what ``work`` took; what it returns is dropped inside the measured time."""
    start = clock()
    work()
    return clock() - start


def exact(id: str, what: str, ours: float, baseline: float, *, wanted: float | None, unit: str, note: str = "") -> Row:
    """Return the row of two numbers that no clock has a say in, such as bytes.

    >>> exact("size", "a file", 51, 50, wanted=1.05, unit="bytes").ratio
    1.02
    """
    return Pairs((baseline,), (ours,)).row(id, what, wanted=wanted, unit=unit, note=note)


def add_clock(parser: argparse.ArgumentParser, default: str = "wall") -> None:
    """Add ``--clock``, whose value names one of ``CLOCKS``."""
    parser.add_argument("--clock", choices=tuple(CLOCKS), default=default, help="cpu: this process's seconds")


def as_json(row: Row) -> dict[str, object]:
    """Return the row as results.json holds it: four significant digits, no empty note."""
    values = dataclasses.asdict(row)
    shown = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()}
    return {key: value for key, value in shown.items() if value != ""}
