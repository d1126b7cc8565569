"""Many runs of many methods as tables: mean ± sample standard deviation over seeds, paired tests against one method.

Sample standard deviation: s = √(Σ(x − x̄)² / (n − 1)). Test: two-sided paired t-test over the seeds both methods have
(Student 1908), because runs of one seed share data, full-precision classifier and importance; p is corrected across
methods by Holm's step-down rule (Holm 1979), measure by measure. With fewer than three pairs nothing is tested.
A value that is undefined in one run is undefined in the mean, never left out silently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from fairquant.report.cells import percent, points

MIN_PAIRS = 3
LEVEL = 0.05


@dataclass(frozen=True)
class Run:
    """One finished run: metrics/evaluate.json of ``method`` at ``seed``."""

    method: str
    seed: int
    evaluate: Mapping[str, Any]


@dataclass(frozen=True)
class Suite:
    """All there is to report.

    ``methods`` in the order of the tables; ``reasons``: method → why there are no numbers; ``reference``: the method
    the others are tested against, or None; ``about``: what the reader must know, label → text.
    """

    methods: tuple[str, ...]
    runs: tuple[Run, ...]
    reasons: Mapping[str, str]
    reference: str | None
    about: Mapping[str, str]

    def of(self, method: str) -> list[Run]:
        """Return the runs of ``method`` by seed."""
        return sorted((run for run in self.runs if run.method == method), key=lambda run: run.seed)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups' names in the order of the runs."""
        return tuple(dict.fromkeys(name for run in self.runs for name in run.evaluate["group"]))


@dataclass(frozen=True)
class Measure:
    """One column: ``read`` takes metrics/evaluate.json, ``show`` writes a mean, ``spread`` its standard deviation."""

    key: str
    label: str
    read: Callable[[Mapping[str, Any]], float | None]
    show: Callable[[float | None], str]
    spread: Callable[[float | None], str]
    tested: bool = False


def _path(*keys: str) -> Callable[[Mapping[str, Any]], float | None]:
    def read(evaluate: Mapping[str, Any]) -> float | None:
        value: Any = evaluate
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return None if value is None else float(value)

    return read


def two_digits(value: float | None) -> str:
    """Write a number with two digits; None is "–".

    >>> two_digits(7.3557), two_digits(None)
    ('7.36', '–')
    """
    return "–" if value is None else f"{value:.2f}"


def _share(key: str, label: str, *path: str) -> Measure:
    return Measure(key, label, _path(*path), percent, percent, tested=True)


def _number(key: str, label: str, *path: str) -> Measure:
    return Measure(key, label, _path(*path), two_digits, two_digits)


MEASURES = (
    _share("overall_accuracy", "overall %", "overall", "after"),
    _share("worst_group_accuracy", "worst group %", "worst_group", "after"),
    _share("gap_max_minus_min", "gap max−min", "gap", "after", "max_minus_min"),
    _share("eodd", "EOdd", "gap", "after", "eodd"),
    Measure("worst_group_change", "worst group, change", _path("worst_group", "change"), points, percent, tested=True),
    _number("packed_mb", "packed MB", "cost", "packed_mb"),
    _number("avg_bits", "bits per weight", "cost", "avg_bits", "by_parameter"),
    _number("ratio", "× smaller", "cost", "ratio"),
)
HARMED = _number("harmed_groups", "harmed groups", "harmed_groups")


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation of ``n`` runs; sd is None with one run, both are None where undefined."""

    n: int
    mean: float | None
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Summary:
        """Summarise ``values``, one per run.

        >>> Summary.of([1.0, 2.0, 4.5])
        Summary(n=3, mean=2.5, sd=1.8027756377319946)
        >>> Summary.of([0.5]), Summary.of([0.5, None])
        (Summary(n=1, mean=0.5, sd=None), Summary(n=2, mean=None, sd=None))
        """
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return cls(len(values), None, None)
        return cls(len(known), fmean(known), stdev(known) if len(known) > 1 else None)

    def text(self, show: Callable[[float | None], str], spread: Callable[[float | None], str]) -> str:
        """Write "mean ± sd", or the mean alone where there is no sd."""
        return show(self.mean) + (f" ± {spread(self.sd)}" if self.sd is not None else "")

    def visible(self) -> Summary:
        """Return the summary without a deviation that two digits do not show (sizes hardly vary with the seed)."""
        return Summary(self.n, self.mean, self.sd if self.sd is not None and self.sd >= 0.005 else None)


def measures(suite: Suite) -> tuple[Measure, ...]:
    """Return the columns of ``suite``: the number of harmed groups only where the runs have it."""
    counted = any(HARMED.read(run.evaluate) is not None for run in suite.runs)
    return (*MEASURES, HARMED) if counted else MEASURES


def summarise(suite: Suite, method: str, measure: Measure) -> Summary:
    """Return mean and sd of ``measure`` over the seeds of ``method``."""
    return Summary.of([measure.read(run.evaluate) for run in suite.of(method)])


def group_accuracy(suite: Suite, method: str, group: str) -> Summary:
    """Return mean and sd of the accuracy of ``group`` after compression."""
    return Summary.of([_path("group", group, "after")(run.evaluate) for run in suite.of(method)])


@dataclass(frozen=True)
class Comparison:
    """``method`` against the reference in one measure: mean difference over ``n`` shared seeds and the paired t-test.

    ``t``, ``p`` and ``p_holm`` are None where nothing can be tested: fewer than three pairs, or differences that do not
    vary.
    """

    measure: str
    method: str
    n: int
    difference: float | None
    t: float | None = None
    p: float | None = None
    p_holm: float | None = None


def compare(suite: Suite) -> list[Comparison]:
    """Return every method with runs against the reference, measure by measure; nothing without a reference."""
    if suite.reference is None or not suite.of(suite.reference):
        return []
    done = []
    for measure in measures(suite):
        if measure.tested:
            others = [name for name in suite.methods if name != suite.reference and suite.of(name)]
            done += _holm([_compare(suite, name, measure) for name in others])
    return done


def _compare(suite: Suite, method: str, measure: Measure) -> Comparison:
    reference = {run.seed: measure.read(run.evaluate) for run in suite.of(str(suite.reference))}
    pairs = [(measure.read(run.evaluate), reference[run.seed]) for run in suite.of(method) if run.seed in reference]
    if not pairs or any(a is None or b is None for a, b in pairs):
        return Comparison(measure.key, method, len(pairs), None)
    differences = [float(a) - float(b) for a, b in pairs if a is not None and b is not None]
    mean = fmean(differences)
    if len(pairs) < MIN_PAIRS or max(differences) - min(differences) < 1e-9:
        return Comparison(measure.key, method, len(pairs), mean)
    from scipy.stats import ttest_rel

    test = ttest_rel([a for a, _ in pairs], [b for _, b in pairs])
    return Comparison(measure.key, method, len(pairs), mean, float(test.statistic), float(test.pvalue))


def _holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    known = holm([item.p for item in comparisons if item.p is not None])
    adjusted = iter(known)
    return [item if item.p is None else Comparison(**{**vars(item), "p_holm": next(adjusted)}) for item in comparisons]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values in the order given: max over smaller ones of (m − rank)·p, at most 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
