"""Networks compute with 0 rows, and give the shapes they give with rows."""

from __future__ import annotations

import pytest
import torch

from fairquant.models.build import build
from fairquant.models.spec import ModelSpec
from fairquant.parallel.no_rows import NoRows


@pytest.mark.parametrize(
    ("before", "after"),
    [((2, 49, 12), (2, 49, 4, -1)), ((2, 6, 8), (-1, 8)), ((2, 4, 4, 3), (2, -1, 3)), ((2, 3, 5), (2, -1))],
)
def test_shapes_are_those_of_rows(before, after):
    rows = torch.zeros(before).reshape(after).shape
    none = torch.zeros(0, *before[1:])
    wanted = [0 if size == 2 else size for size in after]
    with NoRows():
        for found in (none.reshape(wanted), none.reshape(*wanted), none.view(wanted), torch.reshape(none, wanted)):
            assert found.shape == (0, *rows[1:])
        assert none.view(torch.int32).dtype == torch.int32
        assert torch.zeros(2, 6).reshape(2, -1, 3).shape == (2, 2, 3)


@pytest.mark.parametrize("name", ["resnet18", "face_cnn", "deit_tiny_patch16_224", "tiny_vit_5m_224"])
def test_networks_take_part_without_rows(name):
    size = 48 if name == "face_cnn" else 64
    model = build(ModelSpec(name, ("a", "b"), size, (0.5,) * 3, (0.25,) * 3), seed=0).train()
    with NoRows():
        logits = model(torch.zeros(0, 3, size, size))
        logits.sum().backward()
    assert logits.shape == (0, 2)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or "attention_biases" in name  # torch has none for a mask of 0 rows
        assert parameter.grad is None or not parameter.grad.any()
