"""Post-processing in metrics/evaluate.json: fitted on val, measured on test, by hand and against drawn decisions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fairlearn.metrics import demographic_parity_difference, equalized_odds_difference

from fairquant import plugins
from fairquant.artifacts import read_json, write_json
from fairquant.config.load import load_config
from fairquant.config.schema import BootstrapSection, EvaluateSection
from fairquant.errors import ConfigError
from fairquant.evaluate.groups import GroupTable
from fairquant.evaluate.report import evaluation
from fairquant.evaluate.summary import summarise
from fairquant.postprocess._fitted import Scores
from fairquant.predictions import Predictions, SplitPredictions

CLASSES, GROUPS = ("benign", "malignant"), ("light", "dark", "v1.5")
NAMES = plugins.names("postprocess")
PLAIN = EvaluateSection(bootstrap=BootstrapSection(resamples=0))


def split(seed, n=300, noise=1.0, classes=2):
    random = np.random.default_rng(seed)
    members = random.integers(0, 3, n)
    labels = random.integers(0, classes, n)
    margin = (labels - 0.5) * np.array([3.0, 2.0, 1.0])[members] + noise * random.normal(size=n)
    logits = np.stack([np.zeros(n), margin, *[np.full(n, -9.0)] * (classes - 2)], axis=1).astype(np.float32)
    return SplitPredictions(logits, labels, members, np.arange(n))


def model(seed=0, noise=1.0, **options):
    """Predictions of val and test; another ``noise`` is another model on the same samples."""
    return Predictions(
        CLASSES, GROUPS, {"val": split(2 * seed, noise=noise, **options), "test": split(2 * seed + 1, noise=noise)}
    )


def options(**settings):
    return {name: plugins.load("postprocess", name).Options(**settings.get(name, {})) for name in NAMES}


def run(before=None, after=None, section=PLAIN, methods=None):
    before, after = before or model(), after or model(noise=1.5)
    return evaluation(before, after, section=section, postprocess=options() if methods is None else methods)


def test_nothing_changes_without_methods():
    plain = evaluation(model(), model(noise=1.5), section=PLAIN)
    assert "postprocess" not in plain and run(methods={}) == plain
    assert {key: value for key, value in run().items() if key != "postprocess"} == plain


@pytest.mark.parametrize("name", NAMES)
class TestEachMethod:
    def test_shape(self, name):
        found = run()["postprocess"][name]
        assert list(found) == ["before", "after"]
        for metrics in found.values():
            assert list(metrics) == ["overall", "worst_group", "gap", "group", "fitted"]
            assert list(metrics["group"]) == list(metrics["fitted"]) == ["light", "dark", "v1·5"]
            assert list(metrics["group"]["dark"]) == ["n", "accuracy", "selection_rate", "tpr", "fpr", "tnr"]
            assert list(metrics["gap"]) == list(run()["gap"]["before"])
            assert sum(row["n"] for row in metrics["group"].values()) == 300
            assert metrics["worst_group"] == min(row["accuracy"] for row in metrics["group"].values())

    def test_equals_the_mean_of_drawn_decisions(self, name):
        """Oracle: fairlearn and plain means on 2000 draws of the decisions themselves."""
        predictions = model(noise=1.5)
        val, test = predictions["val"], predictions["test"]
        fitted = plugins.load("postprocess", name).fit(
            Scores.of(val.logits, 1), val.labels == 1, val.groups, groups=GROUPS, options=options()[name]
        )
        scores = Scores.of(test.logits, 1)
        draws = np.array([fitted.predict(scores, test.groups, seed=seed) for seed in range(2000)])
        metrics = run()["postprocess"][name]["after"]
        right = draws == (test.labels == 1)
        assert metrics["overall"] == pytest.approx(right.mean(), abs=0.002)
        for g, row in enumerate(metrics["group"].values()):
            own = test.groups == g
            assert row["accuracy"] == pytest.approx(right[:, own].mean(), abs=0.004)
            assert row["selection_rate"] == pytest.approx(draws[:, own].mean(), abs=0.004)
            assert row["tpr"] == pytest.approx(draws[:, own & (test.labels == 1)].mean(), abs=0.005)
            assert row["fpr"] == pytest.approx(draws[:, own & (test.labels == 0)].mean(), abs=0.005)

    def test_the_test_split_is_not_looked_at(self, name):
        """Other test labels give other metrics of the same fitted settings."""
        before = model()
        test = before["test"]
        flipped = dataclasses.replace(test, labels=1 - test.labels)
        other = Predictions(CLASSES, GROUPS, {"val": before["val"], "test": flipped})
        one, two = (run(found, found)["postprocess"][name]["before"] for found in (before, other))
        assert one["fitted"] == two["fitted"]
        assert two["overall"] == pytest.approx(1 - one["overall"])

    def test_without_parity_there_is_no_gap(self, name):
        section = EvaluateSection(parity=False, bootstrap=BootstrapSection(resamples=0))
        assert "gap" not in run(section=section)["postprocess"][name]["after"]

    def test_groups_too_small_to_count_are_left_as_they_are(self, name):
        few = split(1)
        few = dataclasses.replace(few, groups=np.where(np.arange(300) < 20, 2, few.groups % 2))
        models = Predictions(CLASSES, GROUPS, {"val": model()["val"], "test": few})
        section = EvaluateSection(min_group_size=50, bootstrap=BootstrapSection(resamples=0))
        metrics = run(models, models, section=section)
        found = metrics["postprocess"][name]["after"]
        assert list(found["fitted"]) == ["light", "dark"]
        assert found["group"]["v1·5"]["accuracy"] == metrics["group"]["v1·5"]["after"]

    def test_the_first_class_may_be_the_positive_one(self, name):
        section = EvaluateSection(positive_class="benign", bootstrap=BootstrapSection(resamples=0))
        found = run(section=section)["postprocess"][name]["after"]["group"]
        plain = summarise(model(noise=1.5)["test"], classes=CLASSES, groups=GROUPS, positive_class="benign")["group"]
        assert all(abs(found[key]["selection_rate"] - plain[key]["selection_rate"]) < 0.5 for key in plain)
        swapped = [
            Predictions(CLASSES[::-1], GROUPS, {
                key: dataclasses.replace(part, logits=part.logits[:, ::-1].copy(), labels=1 - part.labels)
                for key, part in found.splits.items()
            })
            for found in (model(), model(noise=1.5))
        ]  # fmt: skip
        same = run(*swapped, section=section)["postprocess"][name]["after"]["group"]
        assert all(same[key] == pytest.approx(found[key]) for key in found)

    def test_survives_json(self, name, tmp_path):
        metrics = run()["postprocess"][name]["after"]
        write_json(tmp_path / "evaluate.json", metrics)
        read = read_json(tmp_path / "evaluate.json")
        assert read["gap"] == pytest.approx(metrics["gap"], abs=1e-6)
        for key in ("group", "fitted"):
            assert list(read[key]) == list(metrics[key])
            assert all(read[key][group] == pytest.approx(row, abs=1e-6) for group, row in metrics[key].items())


def test_unchanged_decisions_have_the_classifiers_metrics():
    """Every group's cost is 0 in a classifier that is always sure and right on val: nothing is mixed."""
    part = split(0)
    sure = (50 * np.eye(2, dtype=np.float32))[part.labels]
    before = Predictions(CLASSES, GROUPS, {"val": dataclasses.replace(part, logits=sure), "test": split(1)})
    found = run(before, before)["postprocess"]["calibrated_equalized_odds"]["before"]
    expected = summarise(before["test"], classes=CLASSES, groups=GROUPS)
    assert {row["withheld"] for row in found["fitted"].values()} == {0.0}
    assert found["overall"] == expected["overall_acc"] and found["group"] == expected["group"]
    assert found["gap"]["eodd"] == expected["eodd"]


def test_thresholds_hold_their_constraint_on_the_samples_they_saw():
    """With val as the test split, by fairlearn's own metrics."""
    part = split(0)
    both = Predictions(CLASSES, GROUPS, {"val": part, "test": part})
    for constraint, gap, oracle in (
        ("demographic_parity", "dp_difference", demographic_parity_difference),
        ("equalized_odds", "equalized_odds", equalized_odds_difference),
    ):
        metrics = run(both, both, methods=options(thresholds={"constraint": constraint}))
        assert metrics["postprocess"]["thresholds"]["after"]["gap"][gap] < 1e-9
        before = oracle(part.labels, part.predicted, sensitive_features=part.groups)
        assert metrics["gap"]["after"][gap] == pytest.approx(before) and before > 0.05


def test_expected_counts_of_sure_decisions_are_the_counts():
    part = split(1)
    for positive in (0, 1):
        chance = (part.predicted == positive).astype(float)
        names = {"classes": CLASSES, "groups": GROUPS}
        expected = GroupTable.expected(part.labels, chance, part.groups, positive=positive, **names)
        counted = GroupTable.count(part.labels, part.predicted, part.groups, **names)
        for name in ("truth", "predicted", "right"):
            np.testing.assert_array_equal(getattr(expected, name), getattr(counted, name))


def test_more_than_two_classes_are_refused():
    parts = {name: split(0, classes=3) for name in ("val", "test")}
    three = Predictions((*CLASSES, "other"), GROUPS, parts)
    with pytest.raises(ConfigError) as error:
        run(three, three)
    text = "params.yaml: evaluate.postprocess: got ['calibrated_equalized_odds', 'thresholds'] for 3 classes; "
    assert str(error.value) == text + "allowed: two classes, or [] (no post-processing)"


def test_the_number_of_classes_is_checked_with_the_settings(tmp_path):
    params, meta = tmp_path / "params.yaml", tmp_path / "meta.json"
    params.write_text("evaluate: {postprocess: [thresholds]}\n")
    load_config(params, meta=meta)
    write_json(meta, {"groups": ["a", "b"], "classes": ["x", "y"]})
    assert load_config(params, meta=meta).evaluate.postprocess == ("thresholds",)
    write_json(meta, {"groups": ["a", "b"], "classes": ["x", "y", "z"]})
    with pytest.raises(ConfigError) as error:
        load_config(params, meta=meta)
    text = f"{params}: evaluate.postprocess: got ['thresholds'] for 3 classes; allowed: two classes, or [] "
    assert str(error.value) == text + "(no post-processing)"
    params.write_text("evaluate: {postprocess: []}\n")
    load_config(params, meta=meta)
