"""Further groupings against counting sample by sample, and the columns that are refused."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from fairquant.config.schema import BootstrapSection, EvaluateSection
from fairquant.errors import ArtifactError, ConfigError, DataError
from fairquant.evaluate.audit import MOST_GROUPS, Grouping, audit, groupings
from fairquant.evaluate.bootstrap import intervals
from fairquant.predictions import SplitPredictions

CLASSES = ("benign", "malignant")
N = 60
PLAIN = EvaluateSection(bootstrap=BootstrapSection(resamples=0))


def table(seed: int = 0) -> dict[str, tuple[str, ...]]:
    """A samples table of N rows, every third one in the test split."""
    random = np.random.default_rng(seed)
    columns = {name: [""] * N for name in ("id", "label", "label_name", "group", "group_name", "split")}
    columns["sex"] = random.choice(["female", "male", ""], N).tolist()
    columns["age"] = random.choice(["9", "10", "<1.5"], N).tolist()
    return {name: tuple(values) for name, values in columns.items()}


def models(seed: int = 0) -> tuple[SplitPredictions, SplitPredictions]:
    random = np.random.default_rng(seed)
    rows = np.arange(0, N, 2)
    labels = random.integers(0, 2, len(rows))
    before, after = (
        SplitPredictions(random.normal(size=(len(rows), 2)).astype(np.float32), labels, np.zeros_like(rows), rows)
        for _ in range(2)
    )
    return before, after


def run(wanted, section=PLAIN, columns=None):
    before, after = models()
    found = groupings(wanted, columns or table())
    return audit(before, after, groupings=found, classes=CLASSES, section=section)


def test_equals_counting_sample_by_sample():
    columns, (before, after) = table(), models()
    result = run([("sex",), ("sex", "age")])
    assert list(result) == ["sex", "sex × age"]
    for name, wanted in (("sex", ["sex"]), ("sex × age", ["sex", "age"])):
        rows: dict[str, list[tuple[bool, bool]]] = {}
        for i, row in enumerate(before.indices):
            key = " × ".join(columns[column][row] or "unknown" for column in wanted).replace(".", "·")
            right = tuple(bool(model.predicted[i] == model.labels[i]) for model in (before, after))
            rows.setdefault(key, []).append(right)
        assert set(result[name]["group"]) == set(rows)
        old = {key: sum(a for a, _ in pairs) / len(pairs) for key, pairs in rows.items()}
        new = {key: sum(b for _, b in pairs) / len(pairs) for key, pairs in rows.items()}
        for key, values in result[name]["group"].items():
            assert values == {
                "n": len(rows[key]), "before": pytest.approx(old[key]), "after": pytest.approx(new[key]),
                "change": pytest.approx(new[key] - old[key]), "counted": True,
            }  # fmt: skip
        assert result[name]["worst_group"]["before"] == pytest.approx(min(old.values()))
        assert result[name]["worst_group"]["after"] == pytest.approx(min(new.values()))
        gap = result[name]["gap"]
        assert gap["before"] == {"max_minus_min": pytest.approx(max(old.values()) - min(old.values()))}
        assert gap["after"] == {"max_minus_min": pytest.approx(max(new.values()) - min(new.values()))}


def test_groups_are_named_in_natural_order_and_without_dots():
    assert list(run([("age",)])["age"]["group"]) == ["9", "10", "<1·5"]


def test_a_group_that_stands_only_in_other_splits_is_not_listed():
    columns = table() | {"site": tuple("train" if row % 2 else "test" for row in range(N))}
    result = run([("site",)], columns=columns)["site"]
    assert list(result["group"]) == ["test"]
    assert result["gap"] == {"before": {"max_minus_min": None}, "after": {"max_minus_min": None}}


def test_interval_of_the_change_is_that_of_the_bootstrap():
    section = EvaluateSection(bootstrap=BootstrapSection(resamples=50, confidence=0.9, seed=4))
    result = run([("age",)], section)["age"]["group"]
    (grouping,), (before, after) = groupings([("age",)], table()), models()
    members = grouping.members[before.indices]
    before, after = (SplitPredictions(m.logits, m.labels, members, m.indices) for m in (before, after))
    options = {"parity": False, "positive_class": None, "resamples": 50, "confidence": 0.9, "seed": 4}
    expected = intervals(before, after, classes=CLASSES, groups=grouping.groups, **options)["group"]
    for key, values in result.items():
        assert {"low": values["low"], "high": values["high"]} == expected[key]["change"]
        assert values["low"] <= values["change"] <= values["high"]


def test_small_groups_are_listed_but_do_not_count(caplog):
    columns = table() | {"site": ("rare", *["a", "b"] * 29, "a")}
    with caplog.at_level(logging.WARNING):
        result = run([("site",)], EvaluateSection(min_group_size=2, bootstrap=BootstrapSection(resamples=0)), columns)
    group = result["site"]["group"]
    assert group["rare"]["counted"] is False
    assert result["site"]["worst_group"]["after"] == min(v["after"] for v in group.values() if v["counted"])
    assert (
        "evaluate.min_group_size: fewer than 2 samples in 'rare' (1); left out of worst group and gaps" in caplog.text
    )


def test_no_group_that_counts(caplog):
    with caplog.at_level(logging.WARNING):
        result = run([("sex",)], EvaluateSection(min_group_size=99, bootstrap=BootstrapSection(resamples=0)))["sex"]
    assert result["worst_group"] == {"before": None, "after": None, "change": None}
    assert result["gap"]["before"] == {"max_minus_min": None}
    assert "evaluate.audit sex: gap undefined, fewer than two groups count; null" in caplog.messages


def test_without_parity_there_is_no_gap():
    section = EvaluateSection(parity=False, bootstrap=BootstrapSection(resamples=0))
    assert set(run([("sex",)], section)["sex"]) == {"worst_group", "group"}


def test_nothing_asked():
    assert run([]) == {}


@pytest.mark.parametrize("name", ["gender", "label", "id", "split", "group"])
def test_other_columns_are_refused(name):
    message = f"evaluate.audit: got column '{name}'; allowed: label_name | group_name | sex | age"
    with pytest.raises(ConfigError) as error:
        groupings([("sex", name)], table())
    assert str(error.value) == message


def test_a_column_of_names_is_refused():
    n = MOST_GROUPS + 1
    message = f"evaluate.audit: got 'file' with {n} groups; allowed: at most {MOST_GROUPS}"
    with pytest.raises(ConfigError) as error:
        groupings([("file",)], {"file": [str(row) for row in range(n)]})
    assert str(error.value) == message


def test_names_that_would_be_the_same_key_are_refused():
    members = np.zeros(N, np.int64)
    before, after = models()
    two = [Grouping("a.b", ("x",), members), Grouping("a·b", ("x",), members)]
    with pytest.raises(DataError, match="names that differ by more than"):
        audit(before, after, groupings=two, classes=CLASSES, section=PLAIN)


def test_other_samples_are_refused():
    before, after = models()
    after = SplitPredictions(after.logits, 1 - after.labels, after.groups, after.indices)
    with pytest.raises(ArtifactError, match="samples whose labels differ"):
        audit(before, after, groupings=groupings([("sex",)], table()), classes=CLASSES, section=PLAIN)


def test_groupings_of_the_same_name_are_refused():
    columns = {"a": ["1"], "b × c": ["1"], "a × b": ["1"], "c": ["1"]}
    with pytest.raises(ConfigError) as error:
        groupings([("a", "b × c"), ("a × b", "c")], columns)
    assert str(error.value) == (
        "evaluate.audit: got ['a', 'b × c'] and ['a × b', 'c'], both called 'a × b × c'; allowed: different names"
    )
