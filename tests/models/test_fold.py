"""Batch-norm folding: exact in float64 against the unfolded model, and against torch's own fusion layer by layer."""

from __future__ import annotations

import copy
import logging

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, StdConv2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torchvision.models import vgg

from fairquant.errors import UserError
from fairquant.models.build import build
from fairquant.models.fold import FoldedNorm, fold_batch_norm, foldable, is_folded
from fairquant.models.layers import quantizable_layers

NORMS = nn.modules.batchnorm._BatchNorm
FOLDED = {
    "resnet18": (20, 0),
    "mobilenet_v2": (52, 0),
    "efficientnet_b0": (49, 0),
    "resnet20": (19, 0),
    "nin_gc": (8, 0),
    "densenet121": (59, 62),
    "resnet26": (29, 0),
    "resnet26d": (31, 0),
    "resnet26t": (31, 0),
    "tf_efficientnet_b0": (49, 0),
    "deit_tiny_patch16_224": (0, 0),
}
"""How many batch norms fold into a layer, and how many stay."""


def awaken(model, seed=0):
    """Draw statistics, factors of both signs and shifts for every batch norm."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, NORMS)):
            for tensor, low, high in ((norm.weight, -1.5, 1.5), (norm.bias, -1, 1)):
                if tensor is not None:
                    tensor.uniform_(low, high, generator=generator)
            if norm.running_mean is not None:
                norm.running_mean.normal_(generator=generator)
                norm.running_var.uniform_(0.3, 2, generator=generator)
    return model.eval()


def images(size, dtype=torch.float32, n=2):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("name", FOLDED)
def test_a_folded_model_computes_the_same(make_spec, name):
    model = awaken(build(make_spec(name, size=32), seed=0))
    double = copy.deepcopy(model).double()
    with torch.no_grad():
        expected = double(images(32, torch.float64))
        layers = list(quantizable_layers(model))
        assert len(fold_batch_norm(double)) == FOLDED[name][0]
        assert sum(isinstance(module, NORMS) for module in double.modules()) == FOLDED[name][1]
        torch.testing.assert_close(double(images(32, torch.float64)), expected, rtol=1e-11, atol=1e-11)
        fold_batch_norm(model)
        size = float(expected.abs().max())
        torch.testing.assert_close(model(images(32)).double(), expected, rtol=1e-4, atol=1e-4 * size)
    assert list(quantizable_layers(model)) == layers
    assert is_folded(model) == bool(FOLDED[name][0])


def test_biases_before_batch_norm():
    """The convolutions of torchvision's vgg11_bn have both."""
    model = awaken(vgg.make_layers(vgg.cfgs["A"], batch_norm=True)).double()
    with torch.no_grad():
        expected = model(images(32, torch.float64))
        assert len(fold_batch_norm(model)) == 8
        torch.testing.assert_close(model(images(32, torch.float64)), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["resnet26d", "mobilenet_v2"])
def test_the_structure_follows_from_the_spec(make_spec, name):
    one, two = (build(make_spec(name), seed=seed) for seed in (0, 1))
    fold_batch_norm(awaken(one, seed=5))
    fold_batch_norm(two.train())
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (one, two)]
    assert shapes[0] == shapes[1] and list(shapes[0]) == list(shapes[1])
    two.load_state_dict(one.state_dict())
    with torch.no_grad():
        assert torch.equal(one(images(32)), two.eval()(images(32)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_convolution_by_torchs_fusion(bias, affine):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 6, 3, groups=3, bias=bias, padding=1, padding_mode="reflect")
    model = awaken(nn.Sequential(conv, nn.BatchNorm2d(6, affine=affine, eps=0.1)))
    wanted = fuse_conv_bn_eval(copy.deepcopy(model[0]).double(), copy.deepcopy(model[1]).double())
    assert fold_batch_norm(model) == ("0",)
    torch.testing.assert_close(model[0].weight, wanted.weight.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(model[0].bias, wanted.bias.float(), rtol=1e-6, atol=1e-7)
    assert isinstance(model[1], FoldedNorm) and list(model.state_dict()) == ["0.weight", "0.bias"]


def test_a_linear_layer_by_torchs_fusion():
    torch.manual_seed(0)
    model = awaken(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), nn.ReLU()))
    wanted = fuse_linear_bn_eval(copy.deepcopy(model[1]).double(), copy.deepcopy(model[2]).double())
    assert fold_batch_norm(model) == ("1",)
    torch.testing.assert_close(model[1].weight, wanted.weight.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(model[1].bias, wanted.bias.float(), rtol=1e-6, atol=1e-7)


def test_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.25)).eval()
    values = (model[0].weight, 2), (model[0].bias, 1), (model[1].weight, 3), (model[1].bias, 10)
    with torch.no_grad():
        for tensor, value in (*values, (model[1].running_mean, 5), (model[1].running_var, 2)):
            tensor.fill_(value)
    fold_batch_norm(model)  # f = 3 / 1.5 = 2
    assert model[0].weight.item() == 4 and model[0].bias.item() == 10 + 2 * (1 - 5)


class TestTimms:
    def make(self, **settings):
        torch.manual_seed(0)
        return awaken(nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4, **settings), nn.Conv2d(4, 2, 1)))

    @pytest.mark.parametrize("settings", [{}, {"apply_act": False}, {"act_layer": nn.SiLU}])
    def test_the_activation_stays(self, settings):
        model = self.make(**settings)
        with torch.no_grad():
            expected = model(images(8))
            assert fold_batch_norm(model) == ("0",)
            torch.testing.assert_close(model(images(8)), expected, rtol=1e-5, atol=1e-6)

    def test_its_parameters_keep_their_names(self):
        model = self.make(act_layer=nn.PReLU, inplace=False)
        with torch.no_grad():
            model[1].act.weight.fill_(0.75)
            expected = model(images(8))
            fold_batch_norm(model)
            torch.testing.assert_close(model(images(8)), expected, rtol=1e-5, atol=1e-6)
        assert "1.act.weight" in model.state_dict()

    def test_dropout_stays(self):
        model = self.make(drop_layer=nn.Dropout)
        fold_batch_norm(model)
        assert isinstance(model[1].drop, nn.Dropout) and isinstance(model[1].act, nn.ReLU)
        assert list(dict(model[1].named_children())) == ["drop", "act"]

    def test_a_layer_that_standardises_its_weight_is_left(self):
        model = awaken(nn.Sequential(StdConv2d(3, 4, 3), nn.BatchNorm2d(4)))
        assert fold_batch_norm(model) == () and isinstance(model[1], nn.BatchNorm2d)

    def test_a_normalisation_free_network_has_nothing_to_fold(self):
        assert foldable(timm.create_model("test_resnet", norm_layer=nn.Identity)) == ()


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.bn, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)


class SharedLayer(Twice):
    def forward(self, x):
        return self.second(self.conv(self.bn(self.conv(x))))


class SharedNorm(Twice):
    def forward(self, x):
        return self.bn(self.other(self.bn(self.conv(x))))


class TwoConsumers(Twice):
    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + y


class TwoNorms(Twice):
    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + self.second(y)


class ReadElsewhere(Twice):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.conv.weight.sum()


class SharedUnderAnotherName(Twice):
    def forward(self, x):
        return self.second(self.other(self.bn(self.conv(x))))

    def __init__(self):
        super().__init__()
        self.other = self.conv


class Between(Twice):
    def forward(self, x):
        return self.bn(torch.relu(self.conv(x)))


class Before(Twice):
    def forward(self, x):
        return self.conv(self.bn(x))


@pytest.mark.parametrize(
    "kind",
    [SharedLayer, SharedNorm, TwoConsumers, TwoNorms, ReadElsewhere, SharedUnderAnotherName, Between, Before],
)
def test_what_is_not_one_layer_and_one_norm_stays(kind):
    torch.manual_seed(0)
    model = awaken(kind())
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = model(images(6))
        assert fold_batch_norm(model) == ()
        assert torch.equal(model(images(6)), expected)
    assert list(model.state_dict()) == list(before)


def test_without_running_statistics_nothing_is_fixed():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert fold_batch_norm(model) == () and isinstance(model[1], nn.BatchNorm2d)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(6), nn.BatchNorm2d(6)])
def test_a_norm_over_another_axis_stays(norm):
    """(N, 6, 4) → Linear → (N, 6, 5): the batch norm's channels are not the layer's."""
    model = awaken(nn.Sequential(nn.Linear(4, 5), norm))
    assert foldable(model) == ()


def test_watched_or_computed_weights_are_left():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    handle = model[0].register_forward_hook(lambda *_: None)
    assert foldable(model) == ()
    handle.remove()
    assert [pair.name for pair in foldable(model)] == ["0"]
    nn.utils.parametrizations.weight_norm(model[0])
    assert foldable(model) == ()


def test_the_log_names_what_stays(caplog):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with caplog.at_level(logging.INFO):
        fold_batch_norm(model)
        fold_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    assert caplog.messages == [
        "batch norm: folded into 1 layers; stays: 0",
        "batch norm: folded into 1 layers; none stays",
    ]


def test_folding_twice_is_folding_once(make_spec):
    model = awaken(build(make_spec("resnet20"), seed=0))
    fold_batch_norm(model)
    before = copy.deepcopy(model.state_dict())
    assert fold_batch_norm(model) == ()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_modes_and_memory_format_stay(make_spec):
    model = build(make_spec("resnet18"), seed=0).to(memory_format=torch.channels_last).train()
    model.layer1.eval()
    fold_batch_norm(model)
    assert model.training and not model.layer1[0].bn1.training and model.layer2[0].bn1.training
    assert model.layer2[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_that_cannot_be_traced_is_one_line(make_spec):
    with pytest.raises(UserError, match="quantize.batch_norm: keep") as error:
        fold_batch_norm(build(make_spec("tiny_vit_5m_224", size=64), seed=0))
    assert "\n" not in str(error.value)
