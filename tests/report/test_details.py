"""Tables beyond the group table, against values worked out by hand."""

from __future__ import annotations

import pytest

from fairquant.report import details

AUDIT = {
    "sex × age_group": {
        "worst_group": {"before": 0.5, "after": 0.25, "change": -0.25},
        "gap": {"before": {"max_minus_min": 0.25}, "after": {"max_minus_min": 0.5}},
        "group": {
            "f × <60": {"n": 8, "before": 0.75, "after": 0.75, "change": 0.0, "low": -0.1, "high": 0.1,
                        "counted": True},
            "m × <60": {"n": 4, "before": 0.5, "after": 0.25, "change": -0.25, "low": -0.5, "high": 0.0,
                        "counted": True},
            "m × ≥60": {"n": 1, "before": 0.0, "after": 0.0, "change": 0.0, "low": None, "high": None,
                        "counted": False},
        },
    }
}  # fmt: skip


def test_excessive_loss(inputs, full_inputs):
    assert details.loss_table(full_inputs.metrics["evaluate"]) == [
        ("group", "excessive loss"),
        ("female × <60", "+0.0100"),
        ("female × ≥60", "+0.2500"),
        ("male|$x_1$", "+0.0000"),
        ("φ, largest difference", "0.2500"),
    ]
    assert details.loss_table(inputs.metrics["evaluate"]) == []


def test_undefined_excessive_loss_is_a_dash():
    table = details.loss_table({"excessive_loss": {"group": {"a": None}, "phi": None}})
    assert table[1:] == [("a", "–"), ("φ, largest difference", "–")]


def test_further_groupings():
    assert details.audit_tables({"audit": AUDIT}) == {
        "sex × age_group": [
            ("group", "n", "before %", "after %", "change"),
            ("f × <60", "8", "75.0", "75.0", "+0.0 [-10.0, +10.0]"),
            ("m × <60 (worst before and after)", "4", "50.0", "25.0", "-25.0 [-50.0, +0.0]"),
            ("m × ≥60 (too small to count)", "1", "0.0", "0.0", "+0.0"),
            ("worst group", "", "50.0", "25.0", "-25.0"),
            ("accuracy gap, max − min", "", "25.0", "50.0", "+25.0"),
        ]
    }


@pytest.mark.parametrize("evaluate", [{}, {"audit": {}}])
def test_no_further_groupings(evaluate):
    assert details.audit_tables(evaluate) == {}


def test_gates():
    gates = {
        "worst_group_drop": {"value": 0.1, "limit": 0.02, "passed": False},
        "harmed_groups": {"value": 0, "limit": 0, "passed": True},
        "gap": {"value": None, "limit": 0.05, "passed": False},
    }
    assert details.gate_table({"gates": {"passed": False, "gate": gates}}) == [
        ("gate", "value", "at most", "result"),
        ("worst_group_drop", "0.1", "0.02", "FAILED"),
        ("harmed_groups", "0", "0", "passed"),
        ("gap", "–", "0.05", "FAILED"),
    ]


@pytest.mark.parametrize("evaluate", [{}, {"gates": {}}, {"gates": {"passed": True, "gate": {}}}])
def test_no_gates(evaluate):
    assert details.gate_table(evaluate) == []


def test_harm_in_a_sentence(inputs, full_inputs):
    assert details.harmed_line(full_inputs.metrics["evaluate"]) == (
        "Harmed by the compression (1 of 3 groups): female × ≥60."
    )
    assert details.harmed_line({"harm": {"a": {"harmed": False}}}) == (
        "No group is shown to be harmed by the compression (1 tested)."
    )
    assert details.harmed_line(inputs.metrics["evaluate"]) == ""


def test_widths_narrowest_first_final_then_assigned(inputs):
    metrics = inputs.metrics
    assert details.width_table(metrics["bits"], metrics["quantize"], metrics["evaluate"]["cost"]) == [
        ("bit-width", "channels %", "parameters %", "assigned channels %", "assigned parameters %"),
        ("2bit", "0.00", "0.00", "25.00", "20.00"),
        ("3bit", "60.00", "50.00", "0.00", "0.00"),
        ("4bit", "0.00", "0.00", "40.00", "40.00"),
        ("8bit", "40.00", "50.00", "35.00", "40.00"),
        ("average bits", "4.500", "4.800", "4.900", "5.200"),
    ]


def test_widths_are_sorted_as_numbers(inputs):
    share = {"32bit": {"parameters": 0.5, "channels": 0.5}, "8bit": {"parameters": 0.5, "channels": 0.5}}
    cost = inputs.metrics["evaluate"]["cost"]
    table = details.width_table({**inputs.metrics["bits"], "share": {}}, {"share": share}, cost)
    assert [row[0] for row in table[1:]] == ["8bit", "32bit", "average bits"]


def test_unchanged_widths_are_said_to_be():
    assert details.changed_widths({"bits": {"assigned": 5.2, "final": 5.2, "changed": 0.0}}) == (
        "Bits per weight: 5.20 assigned, 5.20 in the finished model; every unit has the width assigned."
    )
