"""Which differences in an analysis are more than chance: paired tests over seeds, and over samples.

Over seeds: ``report.suite`` (paired t-test, Holm-corrected over methods), with the rows turned into what
metrics/evaluate.json holds: one suite per model and width of the ways of compressing, and one of what is mitigated.
Over samples: McNemar's exact test between two methods on the same test samples, group by group, Holm-corrected over the
groups and methods of one model, width and seed (``evaluate.harm``): it says how far one test set tells two methods
apart, and needs the points' predictions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fairquant import plugins
from fairquant.evaluate.change import compare as compare_samples
from fairquant.evaluate.harm import harm, holm
from fairquant.evaluate.summary import pair
from fairquant.predictions import Predictions
from fairquant.report.analysis import JOIN, Grid, base_of, widths_of
from fairquant.report.cells import probability
from fairquant.report.curves import CurveRow
from fairquant.report.curves_summary import Curves
from fairquant.report.suite import LEVEL, Run, Suite

Point = tuple[str, int, str, float]
"""Model, seed, method, width: what predictions belong to."""
Part = tuple[str, float, str]
"""Model, width, and which methods: ``COMPRESSION``, or "BASE+" with its mitigations."""
COMPRESSION = "compression"
Cells = list[tuple[str, ...]]


def as_evaluate(row: CurveRow) -> dict[str, Any]:
    """Return the part of metrics/evaluate.json that suites read; harm by post-processing is not tested."""
    groups = row.test_group_before
    return {
        "overall": pair(row.test_overall_before, row.test_overall_after),
        "worst_group": pair(row.test_worst_before, row.test_worst_after),
        "gap": {
            "before": {"max_minus_min": row.test_gap_before, "eodd": row.test_eodd_before},
            "after": {"max_minus_min": row.test_gap_after, "eodd": row.test_eodd_after},
        },
        "group": {name: pair(groups[name], row.test_group_after.get(name)) for name in groups},
        "cost": {
            "packed_mb": row.packed_mb,
            "ratio": row.fp32_mb / row.packed_mb,
            "avg_bits": {"by_parameter": row.avg_bits},
        },
        "harmed_groups": None if row.method.partition(JOIN)[2] in plugins.names("postprocess") else len(row.harmed),
    }


def suites(grid: Grid, *, reference: str) -> dict[Part, Suite]:
    """Return the suites of every model and width, widest first.

    The ways of compressing are tested against ``reference``; what is mitigated against the same method without.
    """
    found = {}
    for model, curves in grid.items():
        for bits in widths_of({model: curves}):
            methods = [name for name in curves.methods if curves.at(name, bits)]
            plain = [name for name in methods if JOIN not in name]
            if plain:
                found[model, bits, COMPRESSION] = _suite(curves, bits, plain, reference)
            for base in dict.fromkeys(base_of(name) for name in methods if JOIN in name):
                own = [name for name in methods if base_of(name) == base]
                found[model, bits, f"{base}{JOIN}"] = _suite(curves, bits, own, base)
    return found


def _suite(curves: Curves, bits: float, methods: Sequence[str], reference: str) -> Suite:
    """Return one suite; without rows of ``reference`` nothing is tested."""
    runs = tuple(Run(row.method, row.seed, as_evaluate(row)) for name in methods for row in curves.at(name, bits))
    return Suite(tuple(methods), runs, {}, reference if reference in methods else None, {})


@dataclass(frozen=True)
class Discordance:
    """One group's test samples under ``method`` against ``reference``, of one model, width and seed.

    ``lost`` samples only the reference gets right, ``won`` only the method; ``p`` is McNemar's exact p-value and
    ``p_holm`` corrected; both None for a group without samples.
    """

    model: str
    bits: float
    seed: int
    method: str
    reference: str
    group: str
    n: int
    lost: int
    won: int
    p: float | None
    p_holm: float | None


def discordances(predictions: Mapping[Point, Predictions], *, reference: str) -> list[Discordance]:
    """Return every method's test split against ``reference``'s, and what is mitigated against its base's.

    Sorted by model, width (widest first) and seed; methods without predictions to compare with are left out. Raises
    ``ArtifactError`` where two points of one model and seed were not predicted on the same samples.
    """
    found: list[Discordance] = []
    ranked = sorted(predictions, key=lambda point: (point[0], -point[3], point[1]))
    for model, bits, seed in dict.fromkeys((model, bits, seed) for model, seed, _, bits in ranked):
        rows: list[Discordance] = []
        for point in ranked:
            other = (model, seed, base_of(point[2]) if JOIN in point[2] else reference, bits)
            if (point[0], point[3], point[1]) == (model, bits, seed) and point != other and other in predictions:
                rows += _rows(point, predictions[other], predictions[point], other[2])
        found += _corrected(rows)
    return found


def _rows(point: Point, base: Predictions, own: Predictions, reference: str) -> list[Discordance]:
    model, seed, method, bits = point
    change = compare_samples(base["test"], own["test"], groups=base.groups)
    place = (model, bits, seed, method, reference)
    return [
        Discordance(*place, group, row["n"], row["lost"], row["won"], row["p_value"], None)
        for group, row in harm(change, significance=LEVEL)["harm"].items()
    ]


def _corrected(rows: Sequence[Discordance]) -> list[Discordance]:
    known = iter(holm([row.p for row in rows if row.p is not None]).tolist())
    return [row if row.p is None else replace(row, p_holm=next(known)) for row in rows]


def discordance_table(found: Sequence[Discordance], *, level: float = LEVEL) -> Cells:
    """Return method × (model, width): groups and seeds in which it is significantly worse or better than the reference.

    "2 worse, 1 better of 6 (p 0.003)": of six tests (groups × seeds); the p-value is the smallest corrected one.
    """
    columns = list(dict.fromkeys((row.model, row.bits) for row in found))
    cells: Cells = [("method", *(f"{model}, {bits:g} bits" for model, bits in columns))]
    for method in dict.fromkeys(row.method for row in found):
        own = [[row for row in found if (row.method, row.model, row.bits) == (method, *place)] for place in columns]
        cells.append((method, *(_count(rows, level) for rows in own)))
    return cells


def _count(rows: Sequence[Discordance], level: float) -> str:
    tested = [row for row in rows if row.p_holm is not None]
    if not tested:
        return "–"
    clear = [row for row in tested if row.p_holm is not None and row.p_holm < level]
    worse, better = (sum(sign * (row.lost - row.won) > 0 for row in clear) for sign in (1, -1))
    smallest = probability(min(row.p_holm for row in tested if row.p_holm is not None))
    return f"{worse} worse, {better} better of {len(tested)} (p {smallest})"


def discordance_rows(found: Sequence[Discordance]) -> list[list[object]]:
    """Return one csv row per comparison of a group."""
    head = ["model", "bits", "seed", "method", "reference", "group", "n", "lost", "won", "p", "p_holm"]
    return [list(head), *([getattr(row, name) for name in head] for row in found)]
