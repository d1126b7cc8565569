import pytest
import torch

from fairquant.errors import UserError
from fairquant.models.build import build
from fairquant.models.describe import describe
from fairquant.models.families import torchvision_models

LISTED = [
    ("resnet18", 32),
    ("resnet34", 32),
    ("resnet50", 32),
    ("mobilenet_v2", 32),
    ("efficientnet_b0", 32),
    ("squeezenet1_1", 32),
    ("vgg11_bn", 32),
    ("googlenet", 64),
    ("tiny_vit_5m_224", 64),
    ("deit_tiny_patch16_224", 32),
    ("vit_small_patch16_224", 32),
    ("resnet18.a1_in1k", 32),
    ("resnet20", 32),
    ("nin", 32),
    ("nin_gc", 32),
    ("face_cnn", 48),
]


@pytest.mark.parametrize(("name", "size"), LISTED)
def test_listed_models_build_and_classify(make_spec, name, size):
    spec = make_spec(name, size=size)
    model = build(spec, seed=0)
    assert model.training
    with torch.no_grad():
        logits = model.eval()(torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 3)
    assert torch.isfinite(logits).all()
    described = describe(model, spec)
    assert set(described["layers"]) == set(described["macs"])
    assert all(count > 0 for count in described["macs"].values())
    ran = []
    for layer in described["layers"]:
        model.get_submodule(layer).register_forward_hook(lambda *_, name=layer: ran.append(name))
    model(torch.zeros(1, 3, size, size))
    assert described["roles"] == {"first": ran[0], "last": ran[-1], "classifier": ran[-1]}


def test_description_of_a_depthwise_model(make_spec):
    spec = make_spec("mobilenet_v2")
    model = build(spec, seed=0)
    described = describe(model, spec)
    assert described["layers"]["features.1.conv.0.0"] == {"shape": [32, 1, 3, 3], "kind": "conv2d", "groups": 32}
    assert described["layers"]["classifier.1"] == {"shape": [3, 1280], "kind": "linear", "groups": 1}
    weights = [value for name, value in model.named_parameters() if name.endswith("weight") and value.ndim > 1]
    assert described["parameters"]["quantizable"] == sum(value.numel() for value in weights)
    assert described["parameters"]["total"] == sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize("name", ["squeezenet1_1", "deit_tiny_patch16_224"])
def test_the_seed_alone_decides_the_weights(make_spec, name):
    spec = make_spec(name)
    torch.manual_seed(5)
    expected = torch.rand(())
    torch.manual_seed(5)
    first, second, other = (build(spec, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(()), expected)  # the global generator is untouched
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("resnt18", "^model.name: got 'resnt18'; allowed: a torchvision or timm model name, such as resnet18"),
        ("resnet18.bogus", "^model.name: got 'resnet18.bogus'; allowed: a torchvision or timm model name"),
        (
            "?",
            "^model.name: got '\\?'; allowed: a torchvision or timm model name; or face_cnn \\| nin \\| nin_gc \\| "
            "resnet110 \\| resnet20 \\| resnet32 \\| resnet44 \\| resnet56$",
        ),
    ],
)
def test_unknown_names_get_close_matches(make_spec, name, text):
    with pytest.raises(UserError, match=text):
        build(make_spec(name), seed=0)


TOO_SMALL = [("vit_b_32", 40), ("squeezenet1_1", 8), ("maxvit_t", 64), ("inception_v3", 32)]


@pytest.mark.parametrize(("name", "size"), TOO_SMALL)
def test_a_size_the_model_cannot_take_is_one_line(make_spec, name, size):
    with pytest.raises(UserError) as error:
        build(make_spec(name, size=size), seed=0)
    assert f"model.name: got {name!r}, which cannot be built for data.image_size {size} (" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_that_gives_no_logits_is_refused(make_spec, monkeypatch):
    monkeypatch.setattr(torchvision_models, "create", lambda name, **arguments: torch.nn.Conv2d(3, 3, 1))
    with pytest.raises(UserError, match=r"output for one image is \(1, 3, 8, 8\); allowed: \(1, 3\), one logit"):
        build(make_spec("resnet18", size=8), seed=0)
