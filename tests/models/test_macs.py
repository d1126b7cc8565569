import logging

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fairquant.models.build import build
from fairquant.models.macs import layer_macs


def test_hand_values_of_strides_groups_and_tokens():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 8x8 out: 64 * 8 * 27
        nn.Conv2d(8, 16, 3, padding=1, groups=4),  # 64 * 16 * 2 * 9
        nn.Flatten(2),  # (1, 16, 64): 16 tokens of 64
        nn.Linear(64, 5),  # 16 * 64 * 5
    )
    assert layer_macs(model, 16) == {"0": 13824, "1": 18432, "3": 5120}


def test_resnet18_at_224_has_its_published_count():
    assert sum(layer_macs(torchvision.models.resnet18(), 224).values()) == 1_814_073_344  # 1.814 G in its paper's table


def test_deit_tiny_by_formula(make_spec):
    tokens, width, classes = 14 * 14 + 1, 192, 3
    block = tokens * width * (3 * width + width + 4 * width + 4 * width)  # qkv, proj, fc1, fc2
    patch = 14 * 14 * width * 3 * 16 * 16
    macs = layer_macs(build(make_spec("deit_tiny_patch16_224", size=224), seed=0), 224)
    assert sum(macs.values()) == 12 * block + patch + width * classes
    assert macs["blocks.0.attn.qkv"] == tokens * width * 3 * width


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "tiny_vit_5m_224", "resnetv2_50"])
def test_agrees_with_torchs_flop_counter(make_spec, name):
    model = build(make_spec(name, size=64), seed=0)
    macs = layer_macs(model, 64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, 64, 64))
    attention = {"bmm", "baddbmm", "_scaled_dot_product", "scaled_dot_product"}
    flops = counter.get_flop_counts()["Global"]
    linear = sum(count for operation, count in flops.items() if not any(word in str(operation) for word in attention))
    assert 2 * sum(macs.values()) == linear


def test_attention_out_proj_by_formula(make_spec):
    tokens, width = 5, 768  # 64 pixels in patches of 32, and the class token
    macs = layer_macs(build(make_spec("vit_b_32", size=64), seed=0), 64)
    assert macs["encoder.layers.encoder_layer_0.self_attention.out_proj"] == tokens * width * width
    assert sum(macs.values()) == 12 * tokens * width * 9 * width + 4 * 3 * 1024 * width + 3 * width


def test_weights_used_by_a_parent_are_counted(make_spec):
    macs = layer_macs(build(make_spec("swinv2_tiny_window8_256", size=64), seed=0), 64)
    assert macs["layers.0.blocks.0.attn.qkv"] == 16 * 16 * 96 * 3 * 96


def test_a_layer_that_does_not_run_is_named(caplog):
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Conv2d(3, 2, 1), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    with caplog.at_level(logging.WARNING):
        assert layer_macs(Spare(), 4) == {"used": 96, "spare": 0}
    assert caplog.messages == ["model: layers that a forward pass does not use count 0 MACs: spare"]


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layer_macs(model, 8)
    assert [module.training for module in model.modules()] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[0]._forward_hooks
