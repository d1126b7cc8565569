"""Excessive loss against torch's cross-entropy and values by hand."""

from __future__ import annotations

import dataclasses
import json
import logging
import math

import numpy as np
import pytest
import torch

from fairquant.errors import ArtifactError
from fairquant.evaluate.loss import cross_entropy, excessive_loss, group_loss, log_softmax
from fairquant.predictions import SplitPredictions

GROUPS = ("0.5", "b", "c")


def pair(seed: int = 0, n: int = 200, classes: int = 4) -> tuple[SplitPredictions, SplitPredictions]:
    random = np.random.default_rng(seed)
    labels, groups = random.integers(0, classes, n), random.integers(0, 3, n)
    old, new = (random.normal(scale=scale, size=(n, classes)).astype(np.float32) for scale in (2, 5))
    return tuple(SplitPredictions(logits, labels, groups, np.arange(n)) for logits in (old, new))


def test_equals_torch():
    before, after = pair()
    result = excessive_loss(before, after, groups=GROUPS)
    expected = []
    for g in range(3):
        member = before.groups == g
        old, new = (
            torch.nn.functional.cross_entropy(
                torch.from_numpy(part.logits[member]).double(), torch.from_numpy(part.labels[member])
            ).item()
            for part in (before, after)
        )
        expected.append(new - old)
    assert list(result["group"]) == ["0·5", "b", "c"]
    assert list(result["group"].values()) == pytest.approx(expected, rel=1e-12)
    pairs = [abs(one - other) for one in expected for other in expected]
    assert result["phi"] == pytest.approx(max(pairs), rel=1e-12)
    json.dumps(result, allow_nan=False)


def test_blocks_of_samples_change_nothing(monkeypatch):
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(50, 7)).astype(np.float32), random.integers(0, 7, 50)
    whole = -log_softmax(logits)[np.arange(50), labels]
    monkeypatch.setattr("fairquant.evaluate.loss.BLOCK", 30)  # 4 samples at a time
    np.testing.assert_array_equal(cross_entropy(logits, labels), whole)
    assert cross_entropy(np.empty((0, 7)), []).shape == (0,)


def test_groups_too_small_are_listed_and_left_out_of_phi():
    before, after = pair()
    everything = excessive_loss(before, after, groups=GROUPS)
    result = excessive_loss(before, after, groups=GROUPS, counted=(True, False, True))
    assert result["group"] == everything["group"]
    values = list(everything["group"].values())
    assert result["phi"] == pytest.approx(abs(values[0] - values[2]))


def test_by_hand():
    # equal logits cost log 2; a wrong lead of log 3 costs log 4
    logits = np.array([[0, 0], [math.log(3), 0]], np.float64)
    assert cross_entropy(logits, [0, 1]) == pytest.approx([math.log(2), math.log(4)])


def test_huge_logits_stay_finite():
    logits = np.array([[1e30, 0.0, -1e30], [-2000.0, -1000.0, -1000.0]])
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.tensor([1, 0]), reduction="none")
    assert cross_entropy(logits, [1, 0]) == pytest.approx(expected.numpy())
    assert np.exp(log_softmax(logits)).sum(axis=1) == pytest.approx([1, 1])


def test_shift_of_the_logits_changes_nothing():
    before, _ = pair()
    shifted = dataclasses.replace(before, logits=before.logits.astype(np.float64) + 1000.0)
    assert group_loss(shifted, groups=GROUPS) == pytest.approx(group_loss(before, groups=GROUPS))


def test_same_model_has_no_excess():
    before, _ = pair()
    assert excessive_loss(before, before, groups=GROUPS) == {"group": dict.fromkeys(("0·5", "b", "c"), 0.0), "phi": 0}


def test_permutation_of_groups_permutes():
    before, after = pair()
    turned = [dataclasses.replace(part, groups=2 - part.groups) for part in (before, after)]
    straight = excessive_loss(before, after, groups=GROUPS)
    assert excessive_loss(*turned, groups=GROUPS[::-1]) == straight


def test_group_without_samples_is_null_and_left_out(caplog):
    before, after = pair()
    with caplog.at_level(logging.WARNING):
        result = excessive_loss(before, after, groups=(*GROUPS, "nobody"))
    assert result["group"]["nobody"] is None
    assert result["phi"] == excessive_loss(before, after, groups=GROUPS)["phi"]
    assert caplog.messages == ["excessive_loss: undefined (no samples) in group 'nobody'; null"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_loss_that_is_not_finite_is_null(caplog, value):
    before, after = pair()
    logits = after.logits.copy()
    logits[np.flatnonzero(after.groups == 1)[0], 0] = value
    with caplog.at_level(logging.WARNING):
        result = excessive_loss(before, dataclasses.replace(after, logits=logits), groups=GROUPS)
    assert result["group"]["b"] is None
    assert result["phi"] == pytest.approx(abs(result["group"]["0·5"] - result["group"]["c"]))
    assert caplog.messages == ["excessive_loss: undefined (loss not finite) in group 'b'; null"]


def test_one_group_has_no_difference(caplog):
    before, after = (dataclasses.replace(part, groups=np.zeros(200, np.int64)) for part in pair())
    with caplog.at_level(logging.WARNING):
        assert excessive_loss(before, after, groups=("all",))["phi"] is None
    assert caplog.messages == ["excessive_loss.phi: undefined, fewer than two groups have a loss; null"]


def test_other_samples_are_refused():
    before, after = pair()
    with pytest.raises(ArtifactError, match="samples whose labels differ"):
        excessive_loss(before, dataclasses.replace(after, labels=after.labels[::-1].copy()), groups=GROUPS)
