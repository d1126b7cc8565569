"""metrics/evaluate.json and the tables behind the plots, by hand."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from fairquant.artifacts import read_json, write_json
from fairquant.config.schema import BootstrapSection, EvaluateSection
from fairquant.errors import ArtifactError
from fairquant.evaluate.audit import Grouping
from fairquant.evaluate.bootstrap import intervals
from fairquant.evaluate.calibration import calibration
from fairquant.evaluate.loss import excessive_loss
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


PLAIN = EvaluateSection(bootstrap=BootstrapSection(resamples=0))


def test_by_hand():
    metrics = evaluation(model(BEFORE), model(AFTER), section=PLAIN)
    assert metrics["overall"] == {"before": 0.875, "after": 0.625, "change": -0.25}
    assert metrics["worst_group"] == {"before": 0.75, "after": 0.5, "change": -0.25}
    summary = summarise(model(BEFORE)["test"], classes=CLASSES, groups=GROUPS)
    names = ("eopp1", "eopp0", "eodd", "dp_difference", "equal_opportunity", "equalized_odds", "predictive_equality")
    expected = {"avg_minus_worst": 0.125, "max_minus_min": 0.25} | {name: summary[name] for name in names}
    assert metrics["gap"]["before"] == expected
    assert list(metrics["gap"]["after"]) == list(expected)
    assert metrics["group"] == {
        "female × <60": {"n": 4, "before": 1.0, "after": 0.75, "change": -0.25, "flips": 1, "counted": True},
        'male, "60+"': {"n": 4, "before": 0.75, "after": 0.5, "change": -0.25, "flips": 3, "counted": True},
    }
    assert metrics["flips"] == {"count": 4, "share": 0.5}
    assert metrics["val"] == {key: metrics[key] for key in ("overall", "worst_group", "gap")}
    after = model(AFTER)["test"]
    quantized = summarise(after, classes=CLASSES, groups=GROUPS)
    for key, values in calibration(after, classes=CLASSES, groups=GROUPS, positive=1).items():
        assert set(values) == {"auc", "ece"}
        quantized["group"][key] |= values
    assert metrics["quantized"] == quantized
    assert "interval" not in metrics
    assert metrics["audit"] == {}
    lost_and_won = {key: (row["n"], row["lost"], row["won"]) for key, row in metrics["harm"].items()}
    assert lost_and_won == {"female × <60": (4, 1, 0), 'male, "60+"': (4, 2, 1)}
    assert metrics["harmed_groups"] == 0
    assert metrics["excessive_loss"] == excessive_loss(model(BEFORE)["test"], after, groups=GROUPS)


def test_intervals_are_those_of_the_section():
    section = EvaluateSection(bootstrap=BootstrapSection(resamples=40, confidence=0.8, seed=3))
    found = evaluation(model(BEFORE), model(AFTER), section=section)["interval"]
    before, after = model(BEFORE)["test"], model(AFTER)["test"]
    options = {"classes": CLASSES, "groups": GROUPS, "parity": True, "positive_class": None}
    assert found == intervals(before, after, **options, resamples=40, confidence=0.8, seed=3)
    assert set(found) == {"overall", "worst_group", "gap", "group"}
    assert list(found["gap"]) == list(evaluation(model(BEFORE), model(AFTER), section=PLAIN)["gap"]["before"])


class TestSmallGroups:
    """evaluate.min_group_size: 3 against a third group of two test samples, both wrong after."""

    THREE = (*GROUPS, "few")
    MEMBERS = (0, 0, 0, 1, 1, 1, 2, 2)

    def run(self, minimum, resamples=0):
        before, after = (self.model(predicted) for predicted in (LABELS, [0, 0, 1, 1, 0, 0, 1, 0]))
        section = EvaluateSection(min_group_size=minimum, bootstrap=BootstrapSection(resamples=resamples))
        return evaluation(before, after, section=section)

    def model(self, predicted):
        logits = np.eye(2, dtype=np.float32)[predicted]
        part = SplitPredictions(logits, np.array(LABELS), np.array(self.MEMBERS), np.arange(8))
        return Predictions(CLASSES, self.THREE, {"val": part, "test": part})

    def test_they_are_listed_but_do_not_count(self, caplog):
        with caplog.at_level(logging.WARNING):
            metrics = self.run(3, resamples=20)
        text = "evaluate.min_group_size: fewer than 3 samples in 'few' (2); left out of worst group and gaps"
        assert caplog.messages.count(text) == 1
        few = {"n": 2, "before": 1.0, "after": 0.0, "change": -1.0, "flips": 2, "counted": False}
        assert metrics["group"]["few"] == few
        assert [row["counted"] for row in metrics["group"].values()] == [True, True, False]
        assert metrics["worst_group"]["after"] == pytest.approx(2 / 3)
        assert metrics["quantized"]["worst_group"] == GROUPS[1]
        assert metrics["gap"]["after"]["max_minus_min"] == pytest.approx(1 / 3)
        assert metrics["gap"]["after"]["avg_minus_worst"] == pytest.approx(1 / 6)
        assert metrics["val"]["worst_group"] == metrics["worst_group"]
        assert metrics["interval"]["worst_group"]["after"]["high"] > 0
        assert metrics["interval"]["group"]["few"]["after"] == {"low": 0.0, "high": 0.0}

    def test_they_count_by_default(self):
        metrics = self.run(1)
        assert metrics["worst_group"]["after"] == 0.0
        assert metrics["gap"]["after"]["max_minus_min"] == 1.0

    def test_one_group_left_has_no_gap(self, caplog):
        self.MEMBERS = (0, 0, 0, 0, 1, 1, 2, 2)
        with caplog.at_level(logging.WARNING):
            metrics = self.run(3)
        assert metrics["worst_group"] == {"before": 1.0, "after": 1.0, "change": 0.0}
        assert set(metrics["gap"]["after"].values()) == {None}
        assert "'male, \"60+\"' (2), 'few' (2)" in caplog.text

    def test_no_group_left_has_no_worst(self):
        metrics = self.run(9)
        assert metrics["worst_group"] == {"before": None, "after": None, "change": None}
        assert metrics["quantized"]["worst_group"] is None
        assert set(metrics["gap"]["before"].values()) == {None}


def test_a_group_without_test_samples_does_not_count():
    three = (*GROUPS, "nobody")
    metrics = evaluation(model(BEFORE, three), model(AFTER, three), section=PLAIN)
    assert metrics["group"]["nobody"]["counted"] is False
    assert metrics["worst_group"]["after"] == 0.5


def test_without_parity_there_is_no_gap(tmp_path):
    metrics = evaluation(model(BEFORE), model(AFTER), section=EvaluateSection(parity=False))
    assert "gap" not in metrics["interval"]
    assert "gap" not in metrics
    assert "gap" not in metrics["val"]
    assert "eopp1" not in metrics["quantized"]
    write_plots(tmp_path, metrics)
    assert (tmp_path / "gap.csv").read_text() == "metric,model,value,low,high\n"


def test_survives_json(tmp_path):
    members = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    groupings = [Grouping("v1.0 × age", ("0.5", "1.5"), members)]
    section = EvaluateSection(bootstrap=BootstrapSection(resamples=20))
    metrics = evaluation(model(BEFORE), model(AFTER), section=section, groupings=groupings)
    assert list(metrics["audit"]) == ["v1·0 × age"]
    write_json(tmp_path / "evaluate.json", metrics)
    read = read_json(tmp_path / "evaluate.json")
    assert "." not in "".join(keys(read))
    write_json(tmp_path / "again.json", read)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "evaluate.json").read_bytes()


def keys(tree):
    for key, value in tree.items():
        yield key
        if isinstance(value, dict):
            yield from keys(value)


def test_plots(tmp_path):
    write_plots(tmp_path, evaluation(model(BEFORE), model(AFTER), section=PLAIN))
    assert (tmp_path / "accuracy_before.csv").read_text(encoding="utf-8") == (
        'group,accuracy,low,high\nfemale × <60,1,,\n"male, ""60+""",0.75,,\n'
    )
    assert (tmp_path / "accuracy_after.csv").read_text(encoding="utf-8") == (
        'group,accuracy,low,high\nfemale × <60,0.75,,\n"male, ""60+""",0.5,,\n'
    )
    lines = (tmp_path / "gap.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "metric,model,value,low,high"
    assert "max_minus_min,full precision,0.25,," in lines
    assert "max_minus_min,quantized,0.25,," in lines
    assert len(lines) == 1 + 2 * 9
    assert len({tuple(line.split(",")[:2]) for line in lines}) == len(lines)


def test_plots_with_intervals(tmp_path):
    section = EvaluateSection(bootstrap=BootstrapSection(resamples=20))
    metrics = evaluation(model(BEFORE), model(AFTER), section=section)
    metrics["interval"]["group"]["female × <60"]["after"] = {"low": 0.5, "high": 0.875}
    metrics["interval"]["group"]['male, "60+"']["after"] = {"low": None, "high": None}
    metrics["interval"]["gap"]["max_minus_min"]["before"] = {"low": 0.0, "high": 0.75}
    write_plots(tmp_path, metrics)
    assert (tmp_path / "accuracy_after.csv").read_text(encoding="utf-8") == (
        'group,accuracy,low,high\nfemale × <60,0.75,0.5,0.875\n"male, ""60+""",0.5,,\n'
    )
    lines = (tmp_path / "gap.csv").read_text(encoding="utf-8").splitlines()
    assert "max_minus_min,full precision,0.25,0,0.75" in lines
    assert len(lines) == 1 + 2 * 9


def test_undefined_values_are_left_out_of_plots(tmp_path):
    three = (*GROUPS, "nobody")
    write_plots(tmp_path, evaluation(model(BEFORE, three), model(AFTER, three), section=PLAIN))
    assert "nobody" not in (tmp_path / "accuracy_after.csv").read_text(encoding="utf-8")


def test_each_warning_is_logged_once(caplog):
    three = (*GROUPS, "nobody")
    with caplog.at_level(logging.WARNING):
        evaluation(model(BEFORE, three), model(AFTER, three), section=PLAIN)
        once = list(caplog.messages)
        evaluation(model(BEFORE, three), model(AFTER, three), section=PLAIN)
    assert len(once) == len(set(once)) > 0
    assert caplog.messages == once * 2


def test_other_groups_are_refused():
    with pytest.raises(ArtifactError, match="got other classes or groups; allowed: the same"):
        evaluation(model(BEFORE), model(AFTER, ("x", "y")), section=PLAIN)
