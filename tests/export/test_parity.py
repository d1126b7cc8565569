"""Parity on numbers worked out by hand, and beside what the evaluate stage computes from the same predictions."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fairquant.config.export import ExportGatesSection
from fairquant.config.schema import EvaluateSection
from fairquant.data.batches import iterate
from fairquant.data.store import Store
from fairquant.errors import ArtifactError
from fairquant.evaluate.report import evaluation
from fairquant.export.parity import VALUES, export_gates, normalise, parity, runtime_predictions
from fairquant.export.runtimes import open_session
from fairquant.predictions import Predictions, SplitPredictions
from tests.export import hand_made
from tests.export.hand_made import Told

SECTION = EvaluateSection()
NAMES = {"classes": ("a", "b"), "groups": ("x", "y", "1.5")}


@pytest.fixture
def store(make_store: Callable[..., Store], tmp_path) -> Store:
    return make_store(tmp_path / "prepared", n_per_group=30, size=hand_made.SIZE)


def predictions(logits: list[list[float]], labels: list[int], groups: list[int]) -> SplitPredictions:
    return SplitPredictions(
        np.array(logits, np.float32), np.array(labels), np.array(groups), np.arange(len(labels), dtype=np.int64)
    )


@pytest.fixture
def pair() -> tuple[SplitPredictions, SplitPredictions]:
    """Five samples: x has three (one class flips to wrong, one stays wrong), y has two (one flips to right)."""
    labels, groups = [0, 1, 0, 1, 0], [0, 0, 0, 1, 1]
    simulation = predictions([[2, 1], [0, 3], [1, 2], [4, 3], [5, 1]], labels, groups)
    runtime = predictions([[2, 2.5], [0, 3.25], [1, 2], [3.5, 3.75], [5, 1]], labels, groups)
    return simulation, runtime


class TestNormalise:
    def test_equals_the_batches_of_training_bit_for_bit(self, store):
        rows = store.indices("train")
        (batch,) = iterate(store, rows, batch_size=len(rows), device=torch.device("cpu"))
        mine = normalise(store.images[rows], mean=store.meta["mean"], std=store.meta["std"])
        assert mine.dtype == np.float32
        assert mine.flags.c_contiguous
        assert np.array_equal(mine.view(np.int32), batch.images.contiguous().numpy().view(np.int32))

    def test_follows_the_formula(self):
        pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3)).astype(np.uint8)
        mean, std = [0.1, 0.5, 0.9], [0.2, 0.3, 1.0]
        expected = (pixels / 255.0 - np.array(mean)) / np.array(std)
        found = normalise(pixels, mean=mean, std=std)
        np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2), rtol=0, atol=2e-6)


class TestRuntimePredictions:
    @pytest.mark.parametrize("batch_size", [1, 5, 100])
    @pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
    def test_logits_of_a_file_in_the_stores_order(self, store, tmp_path, runtime, batch_size):
        weight = np.random.default_rng(0).normal(size=(2, 3 * 16 * 16)).astype(np.float32)
        session = open_session(hand_made.linear(tmp_path / "m.onnx", weight), runtime, threads=1)
        found = runtime_predictions(session, store, "test", batch_size=batch_size)
        rows = np.flatnonzero(store.splits == "test")
        pixels = store.images[rows].transpose(0, 3, 1, 2).astype(np.float64) / 255
        centred = (pixels - np.reshape(store.meta["mean"], (3, 1, 1))) / np.reshape(store.meta["std"], (3, 1, 1))
        expected = centred.reshape(len(rows), -1) @ weight.T.astype(np.float64)
        np.testing.assert_allclose(found.logits, expected, rtol=0, atol=5e-4)
        assert found.logits.dtype == np.float32
        for name, values in (("labels", store.labels), ("groups", store.groups)):
            np.testing.assert_array_equal(getattr(found, name), values[rows])
        np.testing.assert_array_equal(found.indices, rows)

    def test_only_the_first(self, store):
        session = Told([np.zeros((4, 2), np.float32), np.ones((3, 2), np.float32)])
        found = runtime_predictions(session, store, "train", batch_size=4, limit=7)
        assert found.logits[:, 0].tolist() == [0] * 4 + [1] * 3
        np.testing.assert_array_equal(found.indices, store.indices("train")[:7])
        assert [images.shape for images in session.given] == [(4, 3, 16, 16), (3, 3, 16, 16)]

    def test_a_split_without_samples(self, store):
        found = runtime_predictions(Told([]), store, "absent", batch_size=4)
        assert found.logits.shape == (0, 2)

    def test_other_classes(self, store):
        session = Told([np.zeros((4, 3), np.float32)])
        with pytest.raises(ArtifactError) as caught:
            runtime_predictions(session, store, "test", batch_size=4, limit=4, name="openvino")
        assert str(caught.value) == "openvino: got logits of shape (N, 3); allowed: (N, 2)"

    def test_progress_is_silent_without_a_terminal(self, store, capfd):
        runtime_predictions(Told([np.zeros((4, 2), np.float32)]), store, "test", batch_size=4, limit=4)
        assert capfd.readouterr() == ("", "")


class TestParity:
    def test_by_hand(self, pair):
        found = parity(*pair, **NAMES, section=SECTION)
        assert found == {
            "n": 5,
            "agreement": 0.6,
            "max_logit_difference": 1.5,
            "overall": {"simulation": 0.6, "runtime": 0.6},
            "worst_group": {"simulation": 0.5, "runtime": pytest.approx(1 / 3)},
            "gap": {"simulation": pytest.approx(2 / 3 - 1 / 2), "runtime": pytest.approx(1 - 1 / 3)},
            "group": {
                "x": {
                    "n": 3, "agreement": pytest.approx(2 / 3), "max_logit_difference": 1.5,
                    "simulation": pytest.approx(2 / 3), "runtime": pytest.approx(1 / 3),
                },
                "y": {"n": 2, "agreement": 0.5, "max_logit_difference": 0.75, "simulation": 0.5, "runtime": 1.0},
                "1·5": {"n": 0, "agreement": None, "max_logit_difference": None, "simulation": None, "runtime": None},
            },
        }  # fmt: skip

    def test_a_model_agrees_with_itself(self, pair):
        found = parity(pair[0], pair[0], **NAMES, section=SECTION)
        assert (found["agreement"], found["max_logit_difference"]) == (1.0, 0.0)

    @pytest.mark.parametrize("minimum", [1, 20])
    @pytest.mark.parametrize("with_gaps", [True, False])
    def test_accuracies_are_those_of_the_evaluate_stage(self, minimum, with_gaps):
        random = np.random.default_rng(0)
        labels, groups = random.integers(0, 2, 90), np.repeat([0, 1, 2], [50, 30, 10])
        sides = [
            SplitPredictions(random.normal(size=(90, 2)).astype(np.float32), labels, groups, np.arange(90))
            for _ in range(2)
        ]
        section = EvaluateSection(min_group_size=minimum, parity=with_gaps, bootstrap={"resamples": 0})
        found = parity(*sides, **NAMES, section=section)
        both = [Predictions(NAMES["classes"], NAMES["groups"], {"test": part, "val": part}) for part in sides]
        expected = evaluation(*both, section=section)
        names = {"simulation": "before", "runtime": "after"}
        for metric in ("overall", "worst_group"):
            assert found[metric] == {side: expected[metric][when] for side, when in names.items()}
        assert ("gap" in found) == with_gaps
        if with_gaps:
            assert found["gap"] == {side: expected["gap"][when]["max_minus_min"] for side, when in names.items()}
        for group, row in found["group"].items():
            theirs = expected["group"][group]
            assert [row[side] for side in names] == [theirs[when] for when in names.values()]
            assert row["agreement"] == pytest.approx(1 - theirs["flips"] / row["n"])

    def test_small_groups_are_named_once(self, pair, caplog):
        section = SECTION.model_copy(update={"min_group_size": 3})
        with caplog.at_level(logging.WARNING):
            found = parity(*pair, **NAMES, section=section)
        assert found["worst_group"]["runtime"] == pytest.approx(1 / 3)
        assert sum("evaluate.min_group_size" in message for message in caplog.messages) == 1

    @pytest.mark.parametrize("side", [0, 1])
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_logits_that_are_not_finite(self, pair, side, value):
        pair[side].logits[[1, 3], 0] = value
        with pytest.raises(ArtifactError) as caught:
            parity(*pair, **NAMES, section=SECTION)
        name = ("simulation", "runtime")[side]
        assert str(caught.value) == (
            f"parity: got 2 of 5 samples of the {name} with logits that are not finite; allowed: finite numbers"
        )

    def test_other_classes(self, pair):
        other = dataclasses.replace(pair[1], logits=np.zeros((5, 3), np.float32))
        with pytest.raises(ArtifactError) as caught:
            parity(pair[0], other, **NAMES, section=SECTION)
        assert str(caught.value) == (
            "parity: got logits (5, 3) for (5, 2) of the simulation; allowed: the same classes"
        )

    def test_other_samples(self, pair):
        other = dataclasses.replace(pair[1], indices=pair[1].indices[::-1])
        with pytest.raises(ArtifactError, match="indices differ; allowed: the same samples"):
            parity(pair[0], other, **NAMES, section=SECTION)


class TestGates:
    FOUND = {
        "onnxruntime": {"agreement": 0.999, "max_logit_difference": 0.25},
        "openvino": {"agreement": 0.99, "max_logit_difference": 0.125},
    }

    def test_every_setting_has_a_value(self):
        assert set(VALUES) == set(ExportGatesSection.model_fields)

    @pytest.mark.parametrize(("name", "value"), [("disagreement", 0.01), ("logit_difference", 0.25)])
    def test_the_worst_runtime_counts(self, name, value):
        for limit, passed in ((value, True), (value + 0.001, True), (value - 0.001, False)):
            section = ExportGatesSection(**({"disagreement": None} | {name: limit}))
            gate = {"value": value, "limit": pytest.approx(limit), "passed": passed}
            assert export_gates(self.FOUND, section) == {"passed": passed, "gate": {name: gate}}

    def test_no_gate_set(self):
        assert export_gates({}, ExportGatesSection(disagreement=None)) == {"passed": True, "gate": {}}

    @pytest.mark.parametrize("found", [{}, {"onnxruntime": {"agreement": None, "max_logit_difference": None}}])
    def test_what_was_not_tried_does_not_pass(self, found, caplog):
        with caplog.at_level(logging.WARNING):
            verdict = export_gates(found, ExportGatesSection(disagreement=0.5))
        expected = {"disagreement": {"value": None, "limit": 0.5, "passed": False}}
        assert verdict == {"passed": False, "gate": expected}
        assert caplog.messages == ["export.gates.disagreement: the value is undefined; the gate fails"]

    def test_a_runtime_without_numbers_does_not_hide_behind_the_other(self):
        found = self.FOUND | {"openvino": {"agreement": None, "max_logit_difference": None}}
        assert export_gates(found, ExportGatesSection(disagreement=0.5))["passed"] is False

    def test_the_result_of_parity_can_be_judged(self, pair):
        found = {"onnxruntime": parity(*pair, **NAMES, section=SECTION)}
        gates = export_gates(found, ExportGatesSection(disagreement=0.4, logit_difference=1))["gate"]
        assert {name: (gate["value"], gate["passed"]) for name, gate in gates.items()} == {
            "disagreement": (0.4, True), "logit_difference": (1.5, False),
        }  # fmt: skip
