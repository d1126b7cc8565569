"""Gates: what the quantized model must satisfy, as limits in params.yaml, and whether it does.

A gate passes where its value is at most its limit. Drops are accuracy before minus after, so a gain is below every
limit. Value and limit are compared to six digits, as metrics/evaluate.json records them: 0.9 - 0.89 is within 0.01.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from fairquant.config.base import Section
from fairquant.config.schema import GatesSection

LOG = logging.getLogger(__name__)
DIGITS = 6
"""Digits behind the point that metrics files keep."""

Metrics = Mapping[str, Any]


def check_gates(metrics: Metrics, section: GatesSection) -> dict[str, Any]:
    """Return which gates passed.

    Args:
        metrics: result of ``report.evaluation``, with ``cost.packed_mb`` (10^6 bytes).
        section: the limits; None is no gate.

    Returns:
        ``passed``: no gate failed; ``gate``: {value, limit, passed} of each gate that is set. A value that is
        undefined is None, and its gate fails with one warning.

    Example:
        >>> check_gates({"overall": {"before": 0.9, "after": 0.89}}, GatesSection(overall_drop=0.01))
        {'passed': True, 'gate': {'overall_drop': {'value': 0.01, 'limit': 0.01, 'passed': True}}}
    """
    return judge(metrics, VALUES, section, key="gates")


def judge(
    metrics: Metrics, values: Mapping[str, Callable[[Metrics], float | None]], section: Section, *, key: str
) -> dict[str, Any]:
    """Return ``check_gates``'s verdict with gates of any section of limits.

    Args:
        metrics: what each of ``values`` looks at.
        values: the value of each gate of ``section``, by name.
        section: the limits; None is no gate.
        key: of the section in params.yaml, for the warning.
    """
    gates = {name: _gate(f"{key}.{name}", values[name](metrics), limit) for name, limit in limits(section).items()}
    return {"passed": all(gate["passed"] for gate in gates.values()), "gate": gates}


def limits(section: Section) -> dict[str, float]:
    """Return the limits that are set, by gate, as a metrics file records them.

    >>> limits(GatesSection(gap=0.05, harmed_groups=0))
    {'gap': 0.05, 'harmed_groups': 0}
    """
    return {name: round(limit, DIGITS) for name, limit in section.model_dump().items() if limit is not None}


def _gate(name: str, value: float | None, limit: float) -> dict[str, Any]:
    if value is None:
        LOG.warning("%s: the value is undefined; the gate fails", name)
        return {"value": None, "limit": limit, "passed": False}
    value = round(value, DIGITS) + 0  # -0.0 becomes 0.0
    return {"value": value, "limit": limit, "passed": value <= limit}


def _drop(pair: Mapping[str, float | None]) -> float | None:
    before, after = pair["before"], pair["after"]
    return None if before is None or after is None else before - after


def _group_drop(metrics: Metrics) -> float | None:
    """Return the largest drop of a group that counts."""
    drops = [_drop(values) for values in metrics["group"].values() if values["counted"]]
    return max((drop for drop in drops if drop is not None), default=None)


def _gap(metrics: Metrics, when: str) -> float | None:
    gap: float | None = metrics["gap"][when]["max_minus_min"]
    return gap


def _gap_increase(metrics: Metrics) -> float | None:
    return _drop({"before": _gap(metrics, "after"), "after": _gap(metrics, "before")})


VALUES: Mapping[str, Callable[[Metrics], float | None]] = {
    "overall_drop": lambda metrics: _drop(metrics["overall"]),
    "worst_group_drop": lambda metrics: _drop(metrics["worst_group"]),
    "group_drop": _group_drop,
    "gap": lambda metrics: _gap(metrics, "after"),
    "gap_increase": _gap_increase,
    "size_mb": lambda metrics: metrics["cost"]["packed_mb"],
    "harmed_groups": lambda metrics: metrics["harmed_groups"],
}
"""What each gate looks at."""
