"""Paired comparison against a sample-by-sample brute force."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fairquant.errors import ArtifactError
from fairquant.evaluate.change import compare
from fairquant.predictions import SplitPredictions

GROUPS = ("a", "b", "c", "nobody")


def pair(seed: int = 0, n: int = 200):
    random = np.random.default_rng(seed)
    labels, groups = random.integers(0, 3, n), random.integers(0, 3, n)
    before = random.normal(size=(n, 3)).astype(np.float32)
    after = before + random.normal(size=(n, 3)).astype(np.float32)
    return (
        SplitPredictions(before, labels, groups, np.arange(n)),
        SplitPredictions(after, labels, groups, np.arange(n)),
    )


def test_equals_brute_force():
    before, after = pair()
    change = compare(before, after, groups=GROUPS)
    for g in range(3):
        rows = [i for i in range(200) if before.groups[i] == g]
        right = [(before.predicted[i] == before.labels[i], after.predicted[i] == before.labels[i]) for i in rows]
        assert change.counts[g] == len(rows)
        assert change.before[g] == pytest.approx(sum(old for old, _ in right) / len(rows))
        assert change.after[g] == pytest.approx(sum(new for _, new in right) / len(rows))
        assert change.flips[g] == sum(before.predicted[i] != after.predicted[i] for i in rows)
        assert change.lost[g] == sum(bool(old and not new) for old, new in right)
        assert change.won[g] == sum(bool(new and not old) for old, new in right)
        assert change.change[g] == pytest.approx((change.won[g] - change.lost[g]) / len(rows))
    assert np.isnan([change.before[3], change.after[3], change.change[3]]).all()


def test_same_model_changes_nothing():
    before, _ = pair()
    change = compare(before, before, groups=GROUPS)
    assert change.flips.sum() == change.lost.sum() == change.won.sum() == 0


@pytest.mark.parametrize("field", ["indices", "labels", "groups"])
def test_other_samples_are_refused(field):
    before, after = pair()
    other = dataclasses.replace(after, **{field: np.roll(getattr(after, field), 1)})
    message = f"got 200 and 200 samples whose {field} differ; allowed: the same samples"
    with pytest.raises(ArtifactError, match=message):
        compare(before, other, groups=GROUPS)
