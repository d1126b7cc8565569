"""What pages leave out, and that the csv files do not."""

from __future__ import annotations

import csv
import dataclasses
import io

from fairquant.report.complete import classes_csv, groups_csv
from fairquant.report.details import harmed_line, loss_table
from fairquant.report.export_tables import accuracy_cells, agreement_cells
from fairquant.report.model_card_results import class_table, harm_sentences, rate_table
from fairquant.report.plots import accuracy_by_group
from fairquant.report.shown import MOST, NAMED, extremes
from fairquant.report.widths_curve import MOST_LINES, budget_curve
from fairquant.report.widths_plots import layer_sensitivity, most_different
from tests.report.test_tables import many_groups


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_groups_csv_holds_every_group():
    evaluate = many_groups()
    evaluate["harm"] = {"g005": {"p_holm": 0.0123, "harmed": True}}
    evaluate["interval"] = {"group": {"g005": {"change": {"low": -0.5, "high": None}}}}
    evaluate["excessive_loss"] = {"group": {"g005": 0.25}, "phi": 0.25}
    rows = rows_of(groups_csv(evaluate))
    assert [row["group"] for row in rows] == list(evaluate["group"])
    assert rows[5] == {
        "group": "g005", "n": "10", "before": "0.5125", "after": "0.2625", "change": "-0.25", "change_low": "-0.5",
        "change_high": "", "flips": "", "p_holm": "0.0123", "harmed": "true", "counted": "true",
        "excessive_loss": "0.25",
    }  # fmt: skip
    assert rows[6]["harmed"] == rows[6]["p_holm"] == rows[6]["excessive_loss"] == ""


def test_classes_csv_holds_every_class(inputs):
    found = {f"c{place}": {"n": place, "accuracy": place / 10_000} for place in range(10_000)}
    metrics = {"baseline": {"test": {"class": found}}, "evaluate": {"quantized": {"class": found}}}
    rows = rows_of(classes_csv(metrics))
    assert len(rows) == 10_000 and rows[7] == {"class": "c7", "n": "7", "before": "0.0007", "after": "0.0007"}
    shown = class_table(dataclasses.replace(inputs, metrics={**inputs.metrics, **metrics}))
    assert [row[0] for row in shown[1:]] == [f"c{place}" for place in (*range(30), *range(9990, 10_000))]


def test_extremes_leave_out_what_is_not_known():
    values = {f"n{place}": None if place % 2 else float(place) for place in range(100)}
    names = extremes(values)
    assert len(names) == MOST and names[0] == "n0" and names[-1] == "n98" and "n1" not in names
    assert extremes({**dict.fromkeys("ab", None), **{str(place): 1.0 for place in range(39)}}) == [*map(str, range(39))]


def test_tables_beside_the_group_table_show_the_same_groups():
    evaluate = many_groups()
    names = [row[0] for row in loss_table(evaluate | {"excessive_loss": {"group": dict.fromkeys(evaluate["group"], 0.0),
                                                                        "phi": 0.0}})[1:-1]]  # fmt: skip
    rates = rate_table(evaluate | {"quantized": {"group": {name: {"n": 1, "ece": 0.5} for name in evaluate["group"]}}})
    assert names == [row[0] for row in rates[1:]] and len(names) == MOST


def test_sentences_name_some_of_many_harmed_groups():
    evaluate = {"harm": {f"g{place}": {"harmed": True, "change": -0.1, "p_holm": 0.01} for place in range(200)}}
    assert harmed_line(evaluate).endswith(f"g{NAMED - 1} and {200 - NAMED} more.")
    (sentence,) = harm_sentences(evaluate, 0.05)
    assert sentence.count("points") == NAMED and sentence.endswith(f" and {200 - NAMED} more.")


def test_runtimes_show_the_extremes():
    group = {
        f"g{place}": {"n": 3, "agreement": 1 - place / 1000, "max_logit_difference": 0.0, "simulation": 0.5,
                      "runtime": place / 200}
        for place in range(200)
    }  # fmt: skip
    totals = {"overall": {"simulation": 0.5, "runtime": 0.5}, "worst_group": {"simulation": 0.5, "runtime": 0.0}}
    found = {"n": 600, "agreement": 0.9, "max_logit_difference": 0.0, "group": group, **totals}
    lowest_first = [f"g{place}" for place in (*range(30), *range(190, 200))]
    assert [row[0] for row in accuracy_cells({"parity": {"openvino": found}})[1:41]] == lowest_first
    assert [row[0] for row in agreement_cells({"parity": {"openvino": found}})[1:41]][:2] == ["g199", "g198"]


def test_the_plot_of_groups_says_that_it_shows_some():
    axes = accuracy_by_group(many_groups()).axes[0]
    assert len(axes.get_yticklabels()) == MOST
    assert axes.get_xlabel().endswith("\n40 of 200 groups: lowest, highest, most fallen")


def test_the_map_of_layers_shows_the_groups_that_differ_most():
    shares = [[0.5] * 150 + [0.9] + [0.5] * 49, [0.5] * 199 + [0.1]]
    assert {150, 199} <= set(most_different(shares)) and len(most_different(shares)) == MOST
    assert most_different([[0.5, 0.1]]) == [0, 1]
    row = {"layer": "fc", "bits": "4"} | {f"importance_share:g{place}": "1" for place in range(200)}
    figure = layer_sensitivity([row])
    assert len(figure.axes[0].get_xticklabels()) == MOST


def test_the_budget_curve_draws_the_heaviest_groups_then_the_costliest():
    rows = [
        {
            "budget": budget,
            "avg_bits": budget,
            "group": f"g{place}",
            "predicted": str(place),
            "measured": "",
            "accuracy": "",
        }
        for budget in ("2.0", "4.0")
        for place in range(200)
    ]
    weights = {f"g{place}": 0.5 if place in (3, 4) else 0.0 for place in range(200)}
    figure = budget_curve(rows, weights, dict.fromkeys(weights))
    drawn = [text.get_text() for text in figure.legends[0].get_texts()][:MOST_LINES]
    assert drawn == ["g3 (binds)", "g4 (binds)", *(f"g{place}" for place in range(190, 200))]
