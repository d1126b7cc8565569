"""The tables of post-processing: every cell by hand, and where they stand in the report."""

from __future__ import annotations

import copy
import dataclasses

from fairquant.report.mitigation import HEADER, MEANING, mitigation_tables
from fairquant.report.write import report_page

EVALUATE = {
    "overall": {"before": 0.84, "after": 0.81, "change": -0.03},
    "worst_group": {"before": 0.8, "after": 0.7, "change": -0.1},
    "gap": {
        "before": {"avg_minus_worst": 0.05, "max_minus_min": 0.1, "dp_difference": 0.2, "equalized_odds": None},
        "after": {"avg_minus_worst": 0.1, "max_minus_min": 0.2, "dp_difference": 0.3, "equalized_odds": 0.4},
    },
    "group": {"a|b": {"n": 4, "before": 0.9, "after": 0.9}, "c": {"n": 0, "before": None, "after": None}},
}


def model(overall, group, gap):
    return {
        "overall": overall, "worst_group": overall - 0.1, "gap": dict.fromkeys(EVALUATE["gap"]["before"], gap),
        "group": {"a|b": {"n": 4, "accuracy": group}, "c": {"n": 0, "accuracy": None}},
    }  # fmt: skip


def evaluate():
    return copy.deepcopy(EVALUATE) | {
        "postprocess": {"x_y": {"before": model(0.8, 0.85, 0.01), "after": model(0.78, 0.75, None)}}
    }


def test_cells_by_hand():
    assert mitigation_tables(evaluate()) == {
        "x_y": [
            HEADER,
            ("a|b", "90.0", "85.0", "90.0", "75.0"),
            ("c", "–", "–", "–", "–"),
            ("overall", "84.0", "80.0", "81.0", "78.0"),
            ("worst group", "80.0", "70.0", "70.0", "68.0"),
            ("accuracy gap, max − min", "10.0", "1.0", "20.0", "–"),
            ("dp difference", "20.0", "1.0", "30.0", "–"),
            ("equalized odds", "–", "1.0", "40.0", "–"),
        ]
    }


def test_without_gaps_there_are_accuracies_only():
    metrics = {key: value for key, value in evaluate().items() if key != "gap"}
    assert [row[0] for row in mitigation_tables(metrics)["x_y"]] == ["group", "a|b", "c", "overall", "worst group"]


def test_the_report_shows_them_where_they_are(inputs):
    assert mitigation_tables(EVALUATE) == {}
    plain = report_page(inputs, {}, {})
    assert "Post-processing" not in plain
    metrics = copy.deepcopy(dict(inputs.metrics))
    groups = {name: {"n": 1, "accuracy": 0.5} for name in metrics["evaluate"]["group"]}
    found = model(0.8, 0.85, 0.01) | {"group": groups}
    metrics["evaluate"]["postprocess"] = {"calibrated_equalized_odds": {"before": found, "after": found}}
    page = report_page(dataclasses.replace(inputs, metrics=metrics), {}, {})
    assert f"## Post-processing\n\n{MEANING}\n\n### calibrated\\_equalized\\_odds\n\n| group |" in page
