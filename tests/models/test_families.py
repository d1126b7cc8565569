"""imagenet weights: a hub cache filled by the test stands for the network."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision

from fairquant.errors import UserError
from fairquant.models.build import build
from fairquant.models.families import cifar, micronet, timm_models, torchvision_models


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch hub whose downloads fail as they do without a network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def refuse(url, *args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path / "checkpoints"


def publish(hub, name, state):
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    hub.mkdir(parents=True, exist_ok=True)
    torch.save(state, hub / url.rsplit("/", 1)[-1])


def published(name, **arguments):
    torch.manual_seed(7)
    return torchvision.models.get_model(name, weights=None, **arguments).state_dict()


@pytest.mark.parametrize(
    ("name", "size", "head", "arguments"),
    [
        ("resnet18", 32, {"fc.weight", "fc.bias"}, {}),
        ("squeezenet1_1", 32, {"classifier.1.weight", "classifier.1.bias"}, {}),
        ("googlenet", 64, {"fc.weight", "fc.bias"}, {"aux_logits": True, "init_weights": False}),
    ],
)
def test_backbone_is_loaded_under_a_new_head(hub, make_spec, name, size, head, arguments):
    state = published(name, **arguments)
    publish(hub, name, state)
    spec = make_spec(name, size=size)
    got = build(spec, weights="imagenet", seed=1).state_dict()
    fresh = build(spec, weights="none", seed=1).state_dict()
    assert {key for key in got if not torch.equal(got[key], state[key])} == head
    assert all(torch.equal(got[key], fresh[key]) for key in head)  # the new head is the seed's


@pytest.mark.parametrize("seed", [0, 7, 14])
def test_squeezenet_does_not_start_dead(make_spec, seed):
    """Seeds 7 and 14 would: a ReLU follows the head, and nothing trains while both logits of all images are 0."""
    model = build(make_spec("squeezenet1_1", classes=("a", "b")), seed=seed).eval()
    logits = model(torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    assert bool((logits > 0).all())
    torch.nn.functional.cross_entropy(logits, torch.arange(8) % 2).backward()
    assert all(bool(parameter.grad.any()) for parameter in model.parameters())


def test_the_head_is_kept_for_as_many_classes(hub, make_spec):
    state = published("squeezenet1_1")
    publish(hub, "squeezenet1_1", state)
    spec = make_spec("squeezenet1_1", classes=tuple(f"c{index}" for index in range(1000)))
    got = build(spec, weights="imagenet", seed=1).state_dict()
    assert all(torch.equal(got[key], state[key]) for key in state)


def test_weights_of_another_image_size_are_named(hub, make_spec):
    state = published("squeezenet1_1")
    state["features.0.weight"] = torch.zeros(64, 3, 5, 5)
    publish(hub, "squeezenet1_1", state)
    with pytest.raises(UserError, match=r"do not fit this image size \(mis-shaped: features.0.weight\)"):
        build(make_spec("squeezenet1_1"), weights="imagenet", seed=0)


def test_without_the_network_the_address_is_named(hub, make_spec):
    with pytest.raises(UserError) as error:
        build(make_spec("resnet18"), weights="imagenet", seed=0)
    assert str(error.value) == (
        "model.weights: imagenet weights of 'resnet18' could not be fetched from "
        "https://download.pytorch.org/models/resnet18-f37072fd.pth (no network); "
        "allowed: none, a path, or imagenet with the network or torch's hub cache in reach"
    )


def test_timm_without_the_network_names_the_hub(make_spec, monkeypatch):
    create = timm.create_model

    def offline(name, *, pretrained=False, **arguments):
        if pretrained:
            raise OSError("no network\nsecond line")
        return create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError) as error:
        build(make_spec("tiny_vit_5m_224", size=64), weights="imagenet", seed=0)
    place = "the Hugging Face hub (timm/tiny_vit_5m_224.dist_in22k)"
    assert f"could not be fetched from {place} (no network); allowed: none, a path" in str(error.value)
    assert "\n" not in str(error.value)


def test_timm_weights_are_loaded(make_spec, monkeypatch):
    create = timm.create_model
    source = create("deit_tiny_patch16_224", num_classes=1000).state_dict()

    def fetched(name, *, pretrained=False, **arguments):
        overlay = {"state_dict": source} if pretrained else None
        return create(name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **arguments)

    monkeypatch.setattr(timm, "create_model", fetched)
    got = build(make_spec("deit_tiny_patch16_224", size=224), weights="imagenet", seed=0).state_dict()
    assert {key for key in got if got[key].shape != source[key].shape} == {"head.weight", "head.bias"}
    assert all(torch.equal(got[key], source[key]) for key in got if not key.startswith("head."))


def test_timm_names_without_weights_say_so(make_spec):
    with pytest.raises(UserError, match="got 'imagenet', which timm does not have for 'cs3darknet_s'; allowed: none"):
        build(make_spec("cs3darknet_s", size=32), weights="imagenet", seed=0)


def test_other_type_errors_are_not_swallowed(monkeypatch):
    from fairquant.models.families import timm_models

    def broken(name, **arguments):
        raise TypeError("unexpected keyword argument 'other'")

    monkeypatch.setattr(timm, "create_model", broken)
    with pytest.raises(TypeError, match="other"):
        timm_models.create("resnet18d", num_classes=2, image_size=32, pretrained=False)


@pytest.mark.parametrize(
    ("name", "loaded"),
    [("nin", "set()"), ("resnet18", "{'torchvision'}"), ("resnet18.a1_in1k", "{'timm', 'torchvision'}")],
)
def test_only_the_family_of_the_model_is_imported(name, loaded):
    """timm and torchvision take seconds, in every stage."""
    program = f"""
import sys
from fairquant.models.build import build
from fairquant.models.fold import fold_batch_norm
from fairquant.models.spec import ModelSpec
fold_batch_norm(build(ModelSpec({name!r}, ("a", "b"), 32, (0.5,) * 3, (0.3,) * 3), seed=0))
assert {{"timm", "torchvision"}} & set(sys.modules) == {loaded}, set(sys.modules)
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_our_names_are_ours_alone():
    """They are asked first, so that nothing else need be imported."""
    own = {*cifar.names(), *micronet.names()}
    assert not own & {*torchvision_models.names(), *timm_models.names()}
