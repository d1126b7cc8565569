"""``predict`` is a plain forward in eval mode, in the store's order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fairquant.data.batches import iterate
from fairquant.errors import UserError
from fairquant.train.predict import predict, predict_splits

CPU = torch.device("cpu")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_equals_a_plain_forward(network, store, split):
    model = network().eval()
    rows = store.indices(split)
    (batch,) = iterate(store, rows, batch_size=len(rows), device=CPU)
    with torch.no_grad():
        expected = model(batch.images).numpy()
    part = predict(model, store, split, batch_size=7, device=CPU)
    np.testing.assert_allclose(part.logits, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(part.indices, rows)
    np.testing.assert_array_equal(part.labels, store.labels[rows])
    np.testing.assert_array_equal(part.groups, store.groups[rows])
    assert part.logits.dtype == np.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_outputs_that_are_not_finite_are_no_measurement(network, store, value):
    model = network().train()
    with torch.no_grad():
        next(layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)).bias[0] = value
    count = len(store.indices("test"))
    said = f"test: got outputs that are not finite for {count} of {count} images; allowed: a model with finite outputs"
    with pytest.raises(UserError) as error:
        predict(model, store, "test", batch_size=7, device=CPU)
    assert str(error.value).startswith(said)
    assert model.training


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_statistics_are_left_alone(network, store, training):
    model = network().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predict(model, store, "val", batch_size=16, device=CPU)
    assert model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_empty_split_has_no_rows(network, store):
    assert predict(network(), store, "absent", batch_size=4, device=CPU).logits.shape == (0, 2)


def test_bf16_is_close_and_float32(network, store):
    model = network()
    exact = predict(model, store, "val", batch_size=16, device=CPU)
    rough = predict(model, store, "val", batch_size=16, device=CPU, precision="bf16")
    assert rough.logits.dtype == np.float32
    np.testing.assert_allclose(rough.logits, exact.logits, atol=0.1)
    assert not np.array_equal(rough.logits, exact.logits)


def test_splits_travel_with_their_names(network, store):
    found = predict_splits(network(), store, ("val", "test"), batch_size=16, device=CPU, precision="fp32")
    assert (found.classes, found.groups) == (store.classes, store.group_names)
    assert {name: len(part.labels) for name, part in found.splits.items()} == {
        name: len(store.indices(name)) for name in ("val", "test")
    }
