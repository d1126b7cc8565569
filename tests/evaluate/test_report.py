"""metrics/evaluate.json and the tables behind the plots, by hand."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from fairquant.artifacts import read_json, write_json
from fairquant.errors import ArtifactError
from fairquant.evaluate.report import evaluation, write_plots
from fairquant.evaluate.summary import summarise
from fairquant.predictions import Predictions, SplitPredictions

CLASSES, GROUPS = ("benign", "malignant"), ("female × <60", 'male, "60+"')
LABELS, MEMBERS = [0, 0, 1, 1, 0, 1, 0, 1], [0, 0, 0, 0, 1, 1, 1, 1]
BEFORE, AFTER = [0, 0, 1, 1, 0, 1, 1, 1], [0, 0, 1, 0, 1, 0, 0, 1]


def model(predicted, groups=GROUPS) -> Predictions:
    logits = np.eye(2, dtype=np.float32)[predicted]
    part = SplitPredictions(logits, np.array(LABELS), np.array(MEMBERS), np.arange(8))
    return Predictions(CLASSES, groups, {"val": part, "test": part})


def test_by_hand():
    metrics = evaluation(model(BEFORE), model(AFTER))
    assert metrics["overall"] == {"before": 0.875, "after": 0.625, "change": -0.25}
    assert metrics["worst_group"] == {"before": 0.75, "after": 0.5, "change": -0.25}
    summary = summarise(model(BEFORE)["test"], classes=CLASSES, groups=GROUPS)
    names = ("eopp1", "eopp0", "eodd", "dp_difference", "equal_opportunity", "equalized_odds", "predictive_equality")
    expected = {"avg_minus_worst": 0.125, "max_minus_min": 0.25} | {name: summary[name] for name in names}
    assert metrics["gap"]["before"] == expected
    assert list(metrics["gap"]["after"]) == list(expected)
    assert metrics["group"] == {
        "female × <60": {"n": 4, "before": 1.0, "after": 0.75, "change": -0.25, "flips": 1},
        'male, "60+"': {"n": 4, "before": 0.75, "after": 0.5, "change": -0.25, "flips": 3},
    }
    assert metrics["flips"] == {"count": 4, "share": 0.5}
    assert metrics["val"] == {key: metrics[key] for key in ("overall", "worst_group", "gap")}
    assert metrics["quantized"] == summarise(model(AFTER)["test"], classes=CLASSES, groups=GROUPS)


def test_without_parity_there_is_no_gap(tmp_path):
    metrics = evaluation(model(BEFORE), model(AFTER), parity=False)
    assert "gap" not in metrics
    assert "gap" not in metrics["val"]
    assert "eopp1" not in metrics["quantized"]
    write_plots(tmp_path, metrics)
    assert (tmp_path / "gap.csv").read_text() == "metric,model,value\n"


def test_survives_json(tmp_path):
    metrics = evaluation(model(BEFORE), model(AFTER))
    write_json(tmp_path / "evaluate.json", metrics)
    assert read_json(tmp_path / "evaluate.json") == metrics


def test_plots(tmp_path):
    write_plots(tmp_path, evaluation(model(BEFORE), model(AFTER)))
    assert (tmp_path / "accuracy_before.csv").read_text(encoding="utf-8") == (
        'group,accuracy\nfemale × <60,1\n"male, ""60+""",0.75\n'
    )
    assert (tmp_path / "accuracy_after.csv").read_text(encoding="utf-8") == (
        'group,accuracy\nfemale × <60,0.75\n"male, ""60+""",0.5\n'
    )
    lines = (tmp_path / "gap.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "metric,model,value"
    assert "max_minus_min,full precision,0.25" in lines
    assert "max_minus_min,quantized,0.25" in lines
    assert len(lines) == 1 + 2 * 9
    assert len({tuple(line.split(",")[:2]) for line in lines}) == len(lines)


def test_undefined_values_are_left_out_of_plots(tmp_path):
    three = (*GROUPS, "nobody")
    write_plots(tmp_path, evaluation(model(BEFORE, three), model(AFTER, three)))
    assert "nobody" not in (tmp_path / "accuracy_after.csv").read_text(encoding="utf-8")


def test_each_warning_is_logged_once(caplog):
    three = (*GROUPS, "nobody")
    with caplog.at_level(logging.WARNING):
        evaluation(model(BEFORE, three), model(AFTER, three))
        once = list(caplog.messages)
        evaluation(model(BEFORE, three), model(AFTER, three))
    assert len(once) == len(set(once)) > 0
    assert caplog.messages == once * 2


def test_other_groups_are_refused():
    with pytest.raises(ArtifactError, match="got other classes or groups; allowed: the same"):
        evaluation(model(BEFORE), model(AFTER, ("x", "y")))
