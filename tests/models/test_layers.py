import pytest
import timm
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fairquant.errors import UserError
from fairquant.models.layers import kind_of, layer_roles, quantizable_layers, weight_parameter


def test_subclasses_count_and_others_do_not():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        StdConv2d(4, 4, 3),
        ScaledStdConv2d(4, 4, 3),
        Conv2dSame(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.Conv1d(4, 4, 1),
        nn.ConvTranspose2d(4, 4, 1),
        nn.Embedding(3, 4),
        NonDynamicallyQuantizableLinear(4, 4),
        nn.Linear(4, 2),
    )
    layers = quantizable_layers(model)
    assert list(layers) == ["0", "1", "2", "3", "8", "9"]
    assert [kind_of(layer) for layer in layers.values()] == ["conv2d"] * 4 + ["linear"] * 2


def test_attention_out_proj_is_found():
    assert "out_proj" in quantizable_layers(nn.MultiheadAttention(8, 2))


def test_a_module_used_twice_stands_once():
    shared = nn.Linear(2, 2)
    assert list(quantizable_layers(nn.ModuleDict({"a": shared, "b": shared}))) == ["a"]


def test_a_shared_weight_is_refused_by_name():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    with pytest.raises(UserError, match="^model: layers 'a' and 'b' share one weight; allowed: a weight for each"):
        quantizable_layers(model)


def test_a_model_without_layers_is_refused():
    with pytest.raises(UserError, match="got BatchNorm2d without Conv2d or Linear"):
        quantizable_layers(nn.BatchNorm2d(3))


class Double(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_names_stay_when_a_weight_is_parametrized():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2))
    weights = [layer.weight for layer in quantizable_layers(model).values()]
    for layer in model:
        nn.utils.parametrize.register_parametrization(layer, "weight", Double())
    layers = quantizable_layers(model)
    assert list(layers) == ["0", "1"]
    assert all(weight_parameter(layer) is weight for layer, weight in zip(layers.values(), weights, strict=True))


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("resnet18", {"first": "conv1", "last": "fc", "classifier": "fc"}),
        ("tiny_vit_5m_224", {"first": "patch_embed.conv1.conv", "last": "head.fc", "classifier": "head.fc"}),
    ],
)
def test_roles(name, roles):
    assert layer_roles(timm.create_model(name, num_classes=2)) == roles


def test_a_classifier_the_model_names_wins_over_the_last_layer():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = nn.Linear(4, 2), nn.Linear(4, 4)

        def get_classifier(self):
            return self.head

        def forward(self, x):
            return self.head(self.body(x))

    assert layer_roles(Odd()) == {"first": "head", "last": "body", "classifier": "head"}
    assert Odd()(torch.zeros(1, 4)).shape == (1, 2)
