"""nin, nin_gc and face_cnn: counts by hand, the shuffle, the grey, sizes."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

from fairquant.errors import UserError
from fairquant.models.build import build
from fairquant.models.describe import describe
from fairquant.models.families import micronet
from fairquant.models.families.micronet import Grey, Shuffle
from fairquant.models.trace import trace

SIZES = {"nin": (8, 32, 64), "nin_gc": (8, 32, 64), "face_cnn": (32, 48, 64)}
CASES = [(name, size) for name, sizes in SIZES.items() for size in sizes]
LAYERS = {
    # positions at 32 px, (out, in, kernel, groups)
    "nin": [
        (1024, (192, 3, 5, 1)), (1024, (160, 192, 1, 1)), (1024, (96, 160, 1, 1)),
        (256, (192, 96, 5, 1)), (256, (192, 192, 1, 1)), (256, (192, 192, 1, 1)),
        (64, (192, 192, 3, 1)), (64, (192, 192, 1, 1)), (64, (3, 192, 1, 1)),
    ],
    "nin_gc": [
        (1024, (256, 3, 5, 1)), (1024, (256, 256, 1, 2)), (1024, (256, 256, 1, 2)),
        (256, (512, 256, 3, 16)), (256, (512, 512, 1, 4)), (256, (512, 512, 1, 4)),
        (64, (1024, 512, 3, 32)), (64, (1024, 1024, 1, 8)), (64, (3, 1024, 1, 1)),
    ],
}  # fmt: skip


def images(size, n=4):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_the_names_are_nobody_elses():
    assert micronet.names() == ["face_cnn", "nin", "nin_gc"]
    assert not any(timm.is_model(name) or name in torchvision.models.list_models() for name in micronet.names())


@pytest.mark.parametrize("name", LAYERS)
def test_weights_and_macs_by_hand(make_spec, name):
    spec = make_spec(name)
    found = describe(build(spec, seed=0), spec)
    shapes = [layer["shape"] for layer in found["layers"].values()]
    assert shapes == [[out, before // groups, k, k] for _, (out, before, k, groups) in LAYERS[name]]
    wanted = [n * out * before // groups * k * k for n, (out, before, k, groups) in LAYERS[name]]
    assert list(found["macs"].values()) == wanted
    norms = sum(2 * out for _, (out, *_) in LAYERS[name][:-1])
    biases = sum(out for _, (out, *_) in LAYERS[name])
    weights = sum(out * before // groups * k * k for _, (out, before, k, groups) in LAYERS[name])
    assert found["parameters"]["total"] == weights + biases + norms


def test_the_face_network_at_its_own_size(make_spec):
    spec = make_spec("face_cnn", size=48)
    found = describe(build(spec, seed=0), spec)
    kernels = [(1, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 512)]
    linear = [(2048, 256), (256, 128), (128, 64), (64, 3)]
    sides = [48, 48, 24, 24, 12, 12, 6, 3]
    shapes = [[out, before, 3, 3] for before, out in kernels] + [[out, before] for before, out in linear]
    assert [layer["shape"] for layer in found["layers"].values()] == shapes
    macs = [side * side * before * out * 9 for side, (before, out) in zip(sides, kernels, strict=True)]
    assert list(found["macs"].values()) == macs + [before * out for before, out in linear]


@pytest.mark.parametrize(("name", "size"), CASES)
def test_they_build_train_and_trace(make_spec, name, size):
    model = build(make_spec(name, size=size), seed=0)
    x = images(size)
    nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 0])).backward()
    still = [key for key, parameter in model.named_parameters() if not bool(parameter.grad.any())]
    assert still == []
    model.eval()
    with torch.no_grad():
        assert torch.equal(trace(model)(x), model(x)) and model(x).shape == (4, 3)


@pytest.mark.parametrize("name", SIZES)
def test_the_last_layer_is_the_classifier(make_spec, name):
    spec = make_spec(name, size=48)
    described = describe(build(spec, seed=0), spec)
    names = list(described["layers"])
    assert described["roles"] == {"first": names[0], "last": names[-1], "classifier": names[-1]}
    assert described["layers"][names[-1]]["shape"][0] == 3


def test_groups_are_dealt_out_in_turn():
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert Shuffle(2)(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert Shuffle(3)(x).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    y = torch.randn(2, 12, 3, 3, generator=torch.Generator().manual_seed(0))
    for groups in (2, 3, 4, 6):
        assert torch.equal(Shuffle(groups)(y), nn.functional.channel_shuffle(y, groups))


def test_shuffling_mixes_the_groups(make_spec):
    """Every logit of nin_gc depends on every channel of its first layer, groups or not."""
    model = build(make_spec("nin_gc", size=8), seed=0).eval()
    x = torch.randn(1, 256, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    model[1:](x)[0, 0].backward()
    assert bool(x.grad.abs().sum((0, 2, 3)).gt(0).all())


def test_grey_is_pillows():
    """ITU-R BT.601; Pillow rounds to whole levels."""
    pixels = (images(16, n=1) * 255).round()
    picture = Image.fromarray(pixels[0].permute(1, 2, 0).to(torch.uint8).numpy())
    wanted = torch.frombuffer(bytearray(picture.convert("L").tobytes()), dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert float((Grey()(pixels) - wanted).abs().max()) <= 0.51
    one = pixels[:, :1]
    torch.testing.assert_close(Grey()(one.expand(-1, 3, -1, -1)), one)


@pytest.mark.parametrize(("name", "size", "smallest"), [("nin", 7, 8), ("nin_gc", 4, 8), ("face_cnn", 28, 32)])
def test_too_small_is_one_line(make_spec, name, size, smallest):
    with pytest.raises(UserError) as error:
        build(make_spec(name, size=size), seed=0)
    assert str(error.value) == f"data.image_size: got {size} with model.name {name!r}; allowed: {smallest} or more"


@pytest.mark.parametrize("name", SIZES)
def test_there_are_no_imagenet_weights(make_spec, name):
    with pytest.raises(UserError, match=f"'imagenet', which does not exist for '{name}'; allowed: none, a path"):
        build(make_spec(name, size=48), weights="imagenet", seed=0)
