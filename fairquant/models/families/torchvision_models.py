"""Every torchvision classification model by its torchvision name (``resnet18``, ``mobilenet_v2``, ``vgg11_bn`` ...).

Source: torchvision.models; ``imagenet`` weights are torchvision's ``DEFAULT`` ones (ImageNet-1k, 1000 classes).
"""

from __future__ import annotations

from http.client import HTTPException
from typing import Any

import torch
from torch import Tensor, nn

from fairquant.errors import UserError

_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def names() -> list[str]:
    """Return the sorted names of the family."""
    import torchvision

    return sorted(torchvision.models.list_models(module=torchvision.models))


def knows(name: str) -> bool:
    """Say whether ``name`` is a torchvision classification model."""
    return name in names()


def create(name: str, *, num_classes: int, image_size: int, pretrained: bool) -> nn.Module:
    """Build ``name`` for ``num_classes``; with ``pretrained`` the backbone's ImageNet weights, under a new head.

    Raises ``UserError`` when the weights cannot be fetched or do not fit ``image_size``.
    """
    import torchvision

    arguments = _arguments(name, image_size)
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **arguments)
    if name.startswith("squeezenet"):
        _open_head(model)
    if pretrained:
        with torch.device("meta"):  # shapes only: a head is what depends on the number of classes
            other = torchvision.models.get_model(name, weights=None, num_classes=num_classes + 1, **arguments)
        _load_backbone(model, name, other.state_dict())
    return model


def _arguments(name: str, image_size: int) -> dict[str, Any]:
    """What some architectures must be told beyond the number of classes."""
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit_"):
        return {"input_size": (image_size, image_size)}
    if name in {"googlenet", "inception_v3"}:
        return {"aux_logits": False, "init_weights": True}
    return {}


def _open_head(model: nn.Module) -> None:
    """Start the head of SqueezeNet where its gradient is not 0.

    A ReLU follows its last convolution. With two classes, 9 of 40 seeds would start with every logit of every image
    at 0, where all gradients are 0, too. Equal biases of 1 let them through and change no order of the logits.
    """
    head = model.get_submodule("classifier.1")
    nn.init.ones_(head.get_parameter("bias"))


def _load_backbone(model: nn.Module, name: str, other: dict[str, Tensor]) -> None:
    """Copy every ImageNet tensor but those of a head with another number of classes.

    ``other`` is the state dict of the same model with one class more.
    """
    state = {key: value for key, value in _fetch(name).items() if not key.startswith(_AUXILIARY)}
    own = model.state_dict()
    head = {key for key, value in own.items() if value.shape != other[key].shape}
    kept = {key: value for key, value in state.items() if key not in head or own[key].shape == value.shape}
    wrong = sorted(key for key, value in kept.items() if key not in own or own[key].shape != value.shape)
    if wrong:
        raise UserError(
            f"model.weights: got imagenet weights of {name!r} that do not fit this image size "
            f"(mis-shaped: {', '.join(wrong[:4])}); allowed: data.image_size 224, or weights none"
        )
    model.load_state_dict(kept, strict=False)


def _fetch(name: str) -> dict[str, Tensor]:
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(
            f"model.weights: imagenet weights of {name!r} could not be fetched from {weights.url} ({error}); "
            "allowed: none, a path, or imagenet with the network or torch's hub cache in reach"
        ) from None
    return state
