"""Gates on numbers worked out by hand: at the limit, above it, a gain, and what is undefined."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from fairquant.config.schema import GatesSection
from fairquant.evaluate.gates import VALUES, check_gates, limits


def metrics() -> dict[str, Any]:
    """Drops: overall 0.01, worst group 0.05, groups 0.05 (a), 0.3 (b, too small to count), -0.02 (c)."""
    return {
        "overall": {"before": 0.9, "after": 0.89},
        "worst_group": {"before": 0.8, "after": 0.75},
        "gap": {"before": {"max_minus_min": 0.1}, "after": {"max_minus_min": 0.13}},
        "group": {
            "a": {"before": 0.8, "after": 0.75, "counted": True},
            "b": {"before": 0.7, "after": 0.4, "counted": False},
            "c": {"before": 0.9, "after": 0.92, "counted": True},
        },
        "harmed_groups": 2,
        "cost": {"packed_mb": 1.25},
    }


BY_HAND = {
    "overall_drop": 0.01, "worst_group_drop": 0.05, "group_drop": 0.05, "gap": 0.13, "gap_increase": 0.03,
    "size_mb": 1.25, "harmed_groups": 2,
}  # fmt: skip


def test_every_setting_has_a_value():
    assert set(VALUES) == set(GatesSection.model_fields) == set(BY_HAND)


@pytest.mark.parametrize("name", BY_HAND)
def test_at_the_limit_passes_and_above_it_fails(name):
    value, step = BY_HAND[name], 1 if name == "harmed_groups" else 0.001
    for limit, passed in ((value, True), (value + step, True), (value - step, False)):
        found = check_gates(metrics(), GatesSection(**{name: limit}))
        expected = {"value": value, "limit": pytest.approx(limit), "passed": passed}
        assert found == {"passed": passed, "gate": {name: expected}}


def test_nothing_set_passes():
    assert check_gates({}, GatesSection()) == {"passed": True, "gate": {}}


def test_one_failure_is_a_failure():
    found = check_gates(metrics(), GatesSection(overall_drop=0.5, size_mb=1.0, harmed_groups=2))
    assert found["passed"] is False
    assert {name: gate["passed"] for name, gate in found["gate"].items()} == {
        "overall_drop": True, "size_mb": False, "harmed_groups": True,
    }  # fmt: skip


def test_a_gain_passes_a_limit_of_zero():
    better = metrics() | {"overall": {"before": 0.8, "after": 0.9}}
    gate = check_gates(better, GatesSection(overall_drop=0))["gate"]["overall_drop"]
    assert gate == {"value": -0.1, "limit": 0.0, "passed": True}


def test_all_groups_gaining_is_a_negative_drop():
    better = metrics() | {"group": {"a": {"before": 0.5, "after": 0.6, "counted": True}}}
    assert check_gates(better, GatesSection(group_drop=0))["gate"]["group_drop"]["value"] == -0.1


UNDEFINED = {
    "overall_drop": {"overall": {"before": 0.9, "after": None}},
    "worst_group_drop": {"worst_group": {"before": None, "after": None}},
    "group_drop": {"group": {"a": {"before": None, "after": None, "counted": True}}},
    "gap": {"gap": {"before": {"max_minus_min": 0.1}, "after": {"max_minus_min": None}}},
    "gap_increase": {"gap": {"before": {"max_minus_min": None}, "after": {"max_minus_min": 0.1}}},
}


@pytest.mark.parametrize("name", UNDEFINED)
def test_an_undefined_value_fails_with_a_warning(name, caplog):
    with caplog.at_level(logging.WARNING):
        found = check_gates(metrics() | UNDEFINED[name], GatesSection(**{name: 1}))
    assert found == {"passed": False, "gate": {name: {"value": None, "limit": 1.0, "passed": False}}}
    assert caplog.messages == [f"gates.{name}: the value is undefined; the gate fails"]


def test_no_group_that_counts_is_undefined():
    alone = metrics() | {"group": {"b": {"before": 0.7, "after": 0.4, "counted": False}}}
    assert check_gates(alone, GatesSection(group_drop=1))["gate"]["group_drop"]["value"] is None


def test_limits_are_those_that_are_set_with_six_digits():
    assert limits(GatesSection(gap=0.12345678, harmed_groups=0)) == {"gap": 0.123457, "harmed_groups": 0}
