"""What widths do to the validation split, against quantizing and predicting by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fairquant.allocate.bitmap import BitMap
from fairquant.assign.measure import Validation
from fairquant.config import Config
from fairquant.quantize.attach import quantize_model, quantizers
from fairquant.train.correction import correct
from fairquant.train.predict import predict

CPU = torch.device("cpu")
BITS = BitMap("per_channel", {"0": np.array([2, 3, 1, 8], np.uint8), "4": np.array([4, 2], np.uint8)})


@pytest.fixture
def store(make_store, tmp_path):
    return make_store(tmp_path / "prepared", n_per_group=60, size=8)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))


def by_hand(model, store, marks):
    """Return (mean −log p(label), accuracy) of each group or class of the validation split, in float64."""
    part = predict(model, store, "val", batch_size=7, device=CPU)
    logits = part.logits.astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss = -log_p[np.arange(len(logits)), part.labels]
    right = logits.argmax(axis=1) == part.labels
    values = getattr(part, marks)
    return np.array([[loss[values == g].mean(), right[values == g].mean()] for g in range(2)]).T


@pytest.mark.parametrize("by, marks", [("group", "groups"), ("class", "labels")])
@pytest.mark.parametrize("samples", [0, 30])
def test_by_hand(model, store, by, marks, samples):
    config = Config(quantize={"scale": "mse", "correction_images": samples}, seed=5)
    measure = Validation(model, store, config, CPU, by=by)
    reference = by_hand(model, store, marks)
    np.testing.assert_allclose(measure.reference, reference[0], rtol=1e-5)
    rounded = copy.deepcopy(model)
    quantize_model(rounded, BITS, scale="mse")
    rounded.eval()
    if samples:
        correct(rounded, copy.deepcopy(model).eval(), store, samples=30, device=CPU, seed=5)
    loss, accuracy = by_hand(rounded, store, marks)
    found = measure(BITS)
    np.testing.assert_allclose(found.increase, loss - reference[0], rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(found.accuracy, accuracy)
    again = measure(BITS)
    np.testing.assert_array_equal(again.increase, found.increase)


def test_full_precision_costs_nothing(model, store):
    found = Validation(model, store, Config(), CPU)(BitMap.filled({"0": (), "4": ()}, 32))
    np.testing.assert_allclose(found.increase, 0, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(model, store, training):
    model.train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure = Validation(model, store, Config(quantize={"correction_images": 30}), CPU)
    measure(BITS)
    assert not quantizers(model) and model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
