"""Why the widths: sentences and tables, against values worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest

from fairquant import plugins
from fairquant.config import Config
from fairquant.report import widths
from fairquant.report.inputs import plain_params
from tests.report.conftest import predicted_metrics


def with_predicted(inputs, **changes):
    bits = {**inputs.metrics["bits"], "predicted": predicted_metrics() | changes}
    return dataclasses.replace(inputs, metrics={**inputs.metrics, "bits": bits})


def with_params(inputs, **settings):
    return dataclasses.replace(inputs, params=plain_params(Config(**settings)))


def unchanged(inputs):
    quantize = {"bits": {"assigned": 5.2, "final": 5.2, "changed": 0.0}}
    return dataclasses.replace(inputs, metrics={**inputs.metrics, "quantize": quantize})


def test_a_spent_budget_in_words(spent_inputs):
    assert widths.choice(unchanged(spent_inputs)) == (
        "Allocator optimal minimised the objective of reducer max over the losses that fisher predicts for each group, "
        "within avg_bits 2 and gbops 4. It reached 0.000875, certified to lie at most 0.11 % above the smallest "
        "possible. Groups that bind, with their weights: a·x (0.75), b|$x$ (0.25). At the margin, the objective falls "
        "by 0.0012 per further bit per weight (avg_bits) and not at all with more gbops."
    )


def test_changed_widths_are_said_to_be(inputs):
    assert widths.choice(inputs).endswith(
        " This is about the widths as assigned; the finished model has others, see below."
    )


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ({"a": 0.0, "b": 1.0}, "Groups that bind, with their weights: b (1)."),
        ({"a": 0.0}, "No group binds."),
        (
            dict.fromkeys("abcdefg", 1 / 7),
            "Groups that bind, with their weights: a (0.143), b (0.143), c (0.143), d (0.143), e (0.143), and 2 more.",
        ),
    ],
)
def test_binding_groups(spent_inputs, weights, text):
    assert text in widths.choice(with_predicted(spent_inputs, weight=weights))


def test_other_budgets_and_classes(spent_inputs):
    made = with_predicted(spent_inputs, price={"size_mb": 0.002, "gbops": 0.01})
    made = with_params(
        made, allocator="optimal", budget={"avg_bits": None, "size_mb": 1.5, "gbops": 2}, importance={"by": "class"}
    )
    text = widths.choice(made)
    assert "predicts for each class, within size_mb 1.5 and gbops 2. It" in text
    assert (
        "falls by 0.002 per further megabyte (size_mb) and by 0.01 per further billion bit operations (gbops)" in text
    )


LEVELS = (
    "Allocator levels: rank units by importance and give the least important share the fewest bits (FairQuant, arXiv "
    "2602.23192). "
)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"reducer": "max"},
            LEVELS + "Importance: grape to each group, reducer max. Settings: bits [2, 4, 8], levels [0.2, 0.4, 0.4], "
            "level_unit params, uniform_bits 8.",
        ),
        (
            {"assign": {"bits": [4, 8], "levels": [0.875, 0.125], "level_unit": "units",
                        "protect": {"layers": ["first", "fc*"], "bits": 16}}, "importance": {"by": "class"}},
            LEVELS + "Importance: grape to each class, reducer balanced. Settings: bits [4, 8], levels "
            "[0.875, 0.125], level_unit units, uniform_bits 8. Protected at 16 bits: first, fc*.",
        ),
        (
            {"allocator": "uniform", "assign": {"uniform_bits": 6}},
            "Allocator uniform: one bit-width for every unit, assign.uniform_bits; importance plays no part. "
            "Importance: grape to each group, reducer balanced. Settings: bits [2, 4, 8], levels [0.2, 0.4, 0.4], "
            "level_unit params, uniform_bits 6.",
        ),
    ],
)  # fmt: skip
def test_widths_that_were_not_predicted(inputs, settings, text):
    assert widths.choice(unchanged(with_params(inputs, **settings))) == text


@pytest.mark.parametrize("name", plugins.names("allocator"))
def test_every_allocator_says_in_its_first_line_what_it_does(inputs, name):
    params = plain_params(Config()) | {"allocator": name}
    first = widths.choice(unchanged(dataclasses.replace(inputs, params=params))).partition(". ")[0]
    assert first.startswith(f"Allocator {name}: ")
    assert len(first) > len(f"Allocator {name}: ") + 10


def test_cost_of_the_choice_to_each_group(spent_inputs):
    assert widths.group_losses(spent_inputs) == [
        ("group", "weight", "predicted loss", "measured increase", "full precision, accuracy %", "accuracy %"),
        ("a.x", "0.750", "0.001", "+0.02", "81.2", "75.0"),
        ("b|$x$", "0.250", "0.0005", "-0.01", "60.0", "50.0"),
    ]


def without(rows, *columns):
    return tuple({**row} | dict.fromkeys(columns, "") for row in rows)


def test_what_was_not_measured_has_no_column(spent_inputs):
    curve = without(spent_inputs.budget_curve, "measured", "accuracy")
    assert widths.group_losses(dataclasses.replace(spent_inputs, budget_curve=curve)) == [
        ("group", "weight", "predicted loss"), ("a.x", "0.750", "0.001"), ("b|$x$", "0.250", "0.0005"),
    ]  # fmt: skip


def test_a_group_without_validation_samples_has_dashes(spent_inputs):
    first, *others = spent_inputs.budget_curve
    curve = ({**first, "measured": "nan", "accuracy": "nan"}, *others)
    rows = widths.group_losses(dataclasses.replace(spent_inputs, budget_curve=curve))
    assert rows[1] == ("a.x", "0.750", "0.001", "–", "81.2", "–")


def test_no_budget_no_tables(inputs):
    assert widths.group_losses(inputs) == []
    assert widths.costly_layers(inputs) == []


def test_classes_are_compared_with_classes(spent_inputs):
    metrics = {**spent_inputs.metrics, "baseline": {"val": {"class": {"a·x": {"accuracy": 0.25}}, "group": {}}}}
    made = dataclasses.replace(with_params(spent_inputs, importance={"by": "class"}), metrics=metrics)
    assert widths.reference_accuracy(made, ["a.x", "b|$x$"]) == {"a.x": 0.25, "b|$x$": None}
    assert [row[4] for row in widths.group_losses(made)[1:]] == ["25.0", "–"]


def test_layers_by_their_part_in_the_objective(spent_inputs):
    """The parts, by hand: .75 · .0008 + .25 · .0001 = .000625 and .75 · .0002 + .25 · .0004 = .00025, of .000875."""
    metrics = {**spent_inputs.metrics, "bits": {**spent_inputs.metrics["bits"], "avg_bits": {"by_parameter": 1.6}}}
    made = dataclasses.replace(spent_inputs, metrics=metrics)
    assert widths.costly_layers(made) == [
        ("layer", "parameters", "bits", "predicted loss", "share %", "if all at 2 bits", "group losing most"),
        ("layer1.0.conv1", "2304", "1.50", "0.000625", "71.4", "0.001", "a.x"),
        ("fc", "128", "4.00", "0.00025", "28.6", "0.005", "b|$x$"),
    ]
    assert [row[0] for row in widths.costly_layers(made, count=1)] == ["layer", "layer1.0.conv1"]


def test_no_predicted_loss_no_table_of_layers(spent_inputs):
    names = ("loss:a.x", "loss:b|$x$")
    nothing = tuple({**row} | dict.fromkeys(names, "0.0") for row in spent_inputs.reasons)
    assert widths.costly_layers(dataclasses.replace(spent_inputs, reasons=nothing)) == []
    protected = without(spent_inputs.reasons, *names)
    assert widths.costly_layers(dataclasses.replace(spent_inputs, reasons=protected)) == []


def test_shares_of_importance(inputs):
    assert widths.importance_shares(inputs.reasons) == (["a", "b"], [[0.5, 0.25], [0.25, 0.75], [0.25, 0.0]])
