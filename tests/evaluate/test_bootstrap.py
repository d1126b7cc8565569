"""Intervals against resampling samples one by one, against scipy, and against what is known of simulated models."""

from __future__ import annotations

import dataclasses
import json
import logging
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from fairquant.errors import ArtifactError, ConfigError, DataError
from fairquant.evaluate import bootstrap
from fairquant.evaluate.bootstrap import intervals
from fairquant.evaluate.gaps import LOG as GAP_LOG
from fairquant.evaluate.report import compare_split
from fairquant.predictions import SplitPredictions

GROUPS = ("a", "b", "c.d")
SETTINGS = {"parity": True, "positive_class": None, "resamples": 400, "confidence": 0.95, "seed": 0}


def part_of(labels, predicted, groups, n_classes) -> SplitPredictions:
    logits = np.eye(n_classes, dtype=np.float32)[np.asarray(predicted, int)]
    return SplitPredictions(logits, np.asarray(labels, np.int64), np.asarray(groups, np.int64), np.arange(len(labels)))


def pair(seed: int = 0, n: int = 240, n_classes: int = 2, n_groups: int = 3) -> tuple[SplitPredictions, ...]:
    """Return two models, right in about 80 and 65 % of the samples, the second mostly where the first is."""
    random = np.random.default_rng(seed)
    labels, groups = random.integers(0, n_classes, n), random.integers(0, n_groups, n)
    old = np.where(random.random(n) < 0.75, labels, random.integers(0, n_classes, n))
    new = np.where(random.random(n) < 0.8, old, random.integers(0, n_classes, n))
    return part_of(labels, old, groups, n_classes), part_of(labels, new, groups, n_classes)


def names(n_classes: int = 2, groups=GROUPS) -> dict[str, tuple[str, ...]]:
    return {"classes": tuple(f"class {k}" for k in range(n_classes)), "groups": tuple(groups)}


def rows(part: SplitPredictions, index) -> SplitPredictions:
    fields = {field.name: getattr(part, field.name)[index] for field in dataclasses.fields(part)}
    return dataclasses.replace(part, **fields)


def flat(metrics) -> dict[tuple[str, ...], float | None]:
    """Return the point estimates of ``compare_split``, or intervals, by (section, name, before | after | change)."""
    result = {}
    for section in ("overall", "worst_group"):
        result |= {(section, when): metrics[section][when] for when in ("before", "after", "change")}
    for key, values in metrics["group"].items():
        result |= {("group", key, when): values[when] for when in ("before", "after", "change")}
    if "before" in metrics["gap"]:  # point estimates: by model, then by name
        for name, old in metrics["gap"]["before"].items():
            new = metrics["gap"]["after"][name]
            change = None if old is None or new is None else new - old
            result |= {("gap", name, "before"): old, ("gap", name, "after"): new, ("gap", name, "change"): change}
    else:
        result |= {("gap", name, when): v for name, values in metrics["gap"].items() for when, v in values.items()}
    return result


@pytest.fixture
def quiet_gaps():
    """Silence the point estimates' warnings of the brute force, one for each resample."""
    GAP_LOG.setLevel(logging.ERROR)
    yield
    GAP_LOG.setLevel(logging.NOTSET)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_agrees_with_resampling_samples(n_classes, quiet_gaps):
    before, after = pair(n=1500, n_classes=n_classes)
    random, brute = np.random.default_rng(1), []
    by_group = [np.flatnonzero(before.groups == g) for g in range(3)]
    options = names(n_classes) | {"positive_class": "class 1"}
    for _ in range(400):
        index = np.concatenate([random.choice(members, len(members)) for members in by_group])
        brute.append(flat(compare_split(rows(before, index), rows(after, index), **options)))
    ours = flat(intervals(before, after, **(SETTINGS | options | {"resamples": 4000, "confidence": 0.8})))
    assert set(ours) == set(brute[0])
    assert len(ours) == 3 * (2 + 3 + 9)
    for key, interval in ours.items():
        values = np.array([row[key] for row in brute])
        # standard error of the 10 % point of 400 normal values: sqrt(.1 * .9 / 400) / .175 = .086 deviations; and
        # accuracies move in steps of one sample
        tolerance = 4 * 0.086 * values.std() + 1 / min(map(len, by_group))
        assert interval["low"] == pytest.approx(np.quantile(values, 0.1), abs=tolerance), key
        assert interval["high"] == pytest.approx(np.quantile(values, 0.9), abs=tolerance), key


@pytest.mark.parametrize("n_classes", [2, 5, 40])
def test_every_metric_of_a_resample_is_the_point_estimate_of_its_samples(n_classes, quiet_gaps):
    # 40 samples, 5 or 40 classes: positives are absent from many a group, classes from the whole
    before, after = pair(seed=2, n=40, n_classes=n_classes)
    options = names(n_classes) | {"positive_class": "class 0"}
    cells = bootstrap._joint(before, after, **names(n_classes))
    for seed in range(30):
        drawn = bootstrap._draw(cells, GROUPS, np.random.Generator(np.random.PCG64(seed)), 1)[:, 0]
        samples = [np.repeat(column, drawn) for column in (cells.truth, *cells.guesses, cells.group)]
        truth, old, new, group = samples
        models = [part_of(truth, guess, group, n_classes) for guess in (old, new)]
        expected = flat(compare_split(*models, **options))
        result = flat(intervals(before, after, **(SETTINGS | options | {"resamples": 1, "seed": seed})))
        assert {key: interval["low"] for key, interval in result.items()} == {
            key: None if value is None else pytest.approx(value, abs=1e-12) for key, value in expected.items()
        }
        assert all(interval["low"] == interval["high"] for interval in result.values())


def test_a_groups_accuracy_is_binomial():
    right = np.arange(200) < 130
    part = part_of(np.zeros(200), ~right, np.zeros(200), 2)
    result = intervals(part, part, **(SETTINGS | names(groups=("all",)) | {"resamples": 20_000, "parity": False}))
    low, high = stats.binom(200, 0.65).ppf([0.025, 0.975]) / 200
    assert result["overall"]["before"] == result["group"]["all"]["after"] == result["worst_group"]["before"]
    assert result["overall"]["before"] == {"low": pytest.approx(low, abs=0.006), "high": pytest.approx(high, abs=0.006)}


def test_the_change_agrees_with_scipy():
    before, after = pair(n_groups=1)
    difference = (after.predicted == after.labels).astype(float) - (before.predicted == before.labels)
    expected = stats.bootstrap((difference,), np.mean, n_resamples=4000, method="percentile", rng=0)
    result = intervals(before, after, **(SETTINGS | names(groups=("all",)) | {"resamples": 4000, "parity": False}))
    ours = result["overall"]["change"]
    assert ours["low"] == pytest.approx(expected.confidence_interval.low, abs=0.01)
    assert ours["high"] == pytest.approx(expected.confidence_interval.high, abs=0.01)


def test_all_right_collapses():
    before, _ = pair()
    part = part_of(before.labels, before.labels, before.groups, 2)
    result = intervals(part, part, **SETTINGS, **names())
    always = {"before": {"low": 1, "high": 1}, "after": {"low": 1, "high": 1}, "change": {"low": 0, "high": 0}}
    assert result["overall"] == result["worst_group"] == result["group"]["c·d"] == always
    for name in ("avg_minus_worst", "max_minus_min", "eopp1", "eopp0", "eodd", "equalized_odds"):
        assert result["gap"][name]["after"] == {"low": 0, "high": 0}


def test_identical_models_do_not_change():
    before, _ = pair()
    result = flat(intervals(before, before, **SETTINGS, **names()))
    assert all(result[key] == {"low": 0, "high": 0} for key in result if key[-1] == "change")
    assert any(result[key]["high"] > result[key]["low"] for key in result if key[-1] == "before")


def test_intervals_cover_the_truth():
    random, covered = np.random.default_rng(4), []
    right, kept, gained = np.array([0.9, 0.75]), 0.9, 0.2  # of what is right and wrong before, is right after
    truth = right * kept + (1 - right) * gained - right
    for seed in range(150):
        groups = np.repeat([0, 1], 600)
        old = random.random(1200) < right[groups]
        new = random.random(1200) < np.where(old, kept, gained)
        parts = [part_of(np.zeros(1200), ~mask, groups, 2) for mask in (old, new)]
        settings = SETTINGS | {"parity": False, "resamples": 300, "seed": seed}
        result = intervals(*parts, **settings, **names(groups=("x", "y")))
        for key, value in zip("xy", truth, strict=True):
            interval = result["group"][key]["change"]
            covered.append(interval["low"] <= value <= interval["high"])
    assert 0.91 < np.mean(covered) < 0.99  # 300 trials: .95 with standard error .013


def test_permutation_of_groups_permutes():
    before, after = pair()
    turned = [dataclasses.replace(part, groups=2 - part.groups) for part in (before, after)]
    straight = flat(intervals(before, after, **SETTINGS, **names()))
    other = flat(intervals(*turned, **SETTINGS, **names(groups=GROUPS[::-1])))
    assert other == {key: pytest.approx(interval) for key, interval in straight.items()}


def test_seed_decides():
    before, after = pair()
    once, again, other = (intervals(before, after, **(SETTINGS | names() | {"seed": s})) for s in (0, 0, 1))
    assert once == again
    assert once != other
    json.dumps(once, allow_nan=False)


def test_chunks_are_all_used(monkeypatch):
    before, after = pair(n=1500)
    whole = flat(intervals(before, after, **(SETTINGS | names() | {"resamples": 3000})))
    monkeypatch.setattr(bootstrap, "CHUNK", 1000)
    small = flat(intervals(before, after, **(SETTINGS | names() | {"resamples": 3000})))
    for key, interval in whole.items():
        width = interval["high"] - interval["low"]
        assert small[key]["low"] == pytest.approx(interval["low"], abs=0.1 * width + 1 / 400)
        assert small[key]["high"] == pytest.approx(interval["high"], abs=0.1 * width + 1 / 400)


def test_counted_leaves_groups_out_of_gaps_and_worst_group():
    before, after = pair(seed=5)
    wrong = np.where(after.groups == 2, 1 - after.labels, after.predicted)
    after = part_of(after.labels, wrong, after.groups, 2)
    every = intervals(before, after, **SETTINGS, **names())
    some = intervals(before, after, counted=[True, True, False], **SETTINGS, **names())
    assert every["worst_group"]["after"] == {"low": 0, "high": 0}
    assert some["worst_group"]["after"]["low"] > 0.3
    assert some["gap"]["max_minus_min"]["after"]["high"] < every["gap"]["max_minus_min"]["after"]["low"]
    assert some["group"] == every["group"]
    assert some["overall"] == every["overall"]
    two = [rows(part, part.groups < 2) for part in (before, after)]
    alone = intervals(*two, **SETTINGS, **names(groups=GROUPS[:2]))
    assert some["gap"] == alone["gap"]
    assert some["worst_group"] == alone["worst_group"]


def test_without_parity_there_are_no_gaps():
    before, after = pair()
    assert set(intervals(before, after, **(SETTINGS | names() | {"parity": False}))) == {
        "overall", "worst_group", "group",
    }  # fmt: skip


def test_binary_gaps_only_with_a_positive_class():
    before, after = pair(n_classes=3)
    gap = intervals(before, after, **SETTINGS, **names(3))["gap"]
    assert list(gap) == ["avg_minus_worst", "max_minus_min", "eopp1", "eopp0", "eodd"]


def test_undefined_is_null_with_one_warning(caplog):
    # only group a has positives, and nobody is in group c
    part = part_of([0, 1, 1, 0, 0], [0, 1, 0, 0, 1], [0, 0, 0, 1, 1], 2)
    with caplog.at_level(logging.WARNING):
        result = intervals(part, part, **SETTINGS, **names())
    assert result["group"]["c·d"]["before"] == {"low": None, "high": None}
    assert result["gap"]["equal_opportunity"]["change"] == {"low": None, "high": None}
    assert result["gap"]["max_minus_min"]["before"]["low"] is not None
    assert caplog.messages == [
        "interval: undefined in over half of the resamples: "
        "group 'c·d', gap 'eodd', gap 'equal_opportunity', gap 'equalized_odds'; null"
    ]


@pytest.mark.parametrize(("positives", "is_null"), [(1, True), (3, False)])
def test_half_of_the_resamples_suffice(positives, is_null):
    # a has all kinds; b has 1 positive of 10, absent from (9/10)^10 = 35 % of the resamples, or 2 groups of them
    groups = np.repeat([0, 1, 2], [40, 10, 10]) if is_null else np.repeat([0, 1], [40, 10])
    labels = np.zeros(len(groups), np.int64)
    labels[:20] = 1
    if is_null:
        groups = groups[20:]  # a has no positives either, so that b and c are both needed: (1 - .35)^2 = 42 %
        labels = labels[20:]
        labels[[20, 30]] = 1
    else:
        labels[40 : 40 + positives] = 1
    part = part_of(labels, labels, groups, 2)
    result = intervals(part, part, **SETTINGS, **names(groups=GROUPS[: groups.max() + 1]))
    assert (result["gap"]["equal_opportunity"]["before"]["low"] is None) == is_null


def test_no_samples_at_all_is_all_null(caplog):
    part = part_of([], [], [], 2)
    result = flat(intervals(part, part, **SETTINGS, **names()))
    assert all(interval == {"low": None, "high": None} for interval in result.values())
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("and 9 more; null")


def test_many_classes():
    before, after = pair(n=600, n_classes=114, n_groups=6)
    result = intervals(before, after, **(SETTINGS | {"resamples": 100}), **names(114, [f"g{i}" for i in range(6)]))
    assert 0 < result["gap"]["eodd"]["before"]["low"] <= result["gap"]["eodd"]["before"]["high"] <= 2


def test_mistakes_are_one_line():
    before, after = pair()
    with pytest.raises(ArtifactError, match="samples whose labels differ"):
        intervals(before, dataclasses.replace(after, labels=1 - after.labels), **SETTINGS, **names())
    with pytest.raises(ConfigError, match="evaluate.bootstrap.resamples: got 0; allowed: >= 1 for intervals"):
        intervals(before, after, **(SETTINGS | names() | {"resamples": 0}))
    with pytest.raises(ConfigError, match="evaluate.bootstrap.confidence: got 1.0; allowed: > 0 and < 1"):
        intervals(before, after, **(SETTINGS | names() | {"confidence": 1.0}))
    with pytest.raises(ConfigError, match="evaluate.positive_class: got 'cancer'"):
        intervals(before, after, **(SETTINGS | names() | {"positive_class": "cancer"}))
    with pytest.raises(DataError, match="metrics: got 2 marks of groups that count; allowed: 3, one per group"):
        intervals(before, after, counted=[True, False], **SETTINGS, **names())
    with pytest.raises(DataError, match="metrics: got groups from 0 to 2; allowed: 0 to 1"):
        intervals(before, after, **SETTINGS, **names(groups=("a", "b")))


def test_many_classes_and_groups_do_not_multiply():
    # 2,000 classes × 200 groups × 50 resamples would be 160 MB for each of the counts, of which there are several
    classes, groups = tuple(map(str, range(2000))), tuple(f"g{place}" for place in range(200))
    before, after = pair(n=1000, n_classes=2000, n_groups=200)
    settings = SETTINGS | {"resamples": 50, "classes": classes, "groups": groups}
    tracemalloc.start()
    result = intervals(before, after, **settings)
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    assert len(result["group"]) == 200 and result["gap"]["eodd"]["before"]["low"] > 0
