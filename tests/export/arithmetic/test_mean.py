"""The mean in the order of summation that onnxruntime uses, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fairquant.export.arithmetic.mean import mean_in_order
from tests.export.qdq import Builder, images, runtime


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 14])
def test_equals_onnxruntime(size, keepdims):
    builder = Builder(size)
    mean = builder.node("ReduceMean", "image", builder.constant(np.array([2, 3])), keepdims=keepdims)
    model = builder.model(mean, image=("batch", 7, size, size))
    x = images(builder.random, 9, 7, size, size)
    expected = runtime(model, x)
    assert np.array_equal(mean_in_order(torch.from_numpy(x), [2, 3], keepdim=bool(keepdims)).numpy(), expected)
    assert np.allclose(expected, x.astype(np.float64).mean(axis=(2, 3), keepdims=bool(keepdims)), atol=1e-6)


def test_the_order_matters():
    x = torch.randn(1000, 49, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(mean_in_order(x, [1], keepdim=False), x.double().mean(dim=1).float())


def test_other_dimensions_are_torchs_mean():
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(mean_in_order(x, [1], keepdim=False), x.mean(dim=1))
    assert mean_in_order(x, [-1], keepdim=True).tolist() == [[[1.5], [5.5], [9.5]], [[13.5], [17.5], [21.5]]]
