"""Every timm model by its timm name, with or without a weights tag (``tiny_vit_5m_224``, ``resnet18.a1_in1k`` ...).

Source: timm (Wightman, 2019); ``imagenet`` weights are those timm links to the name's default or given tag. timm is
imported by those who ask for it: that takes half a second which a stage with another family's model need not spend.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fairquant.errors import UserError


def names() -> list[str]:
    """Return the sorted names of the family, without weights tags."""
    import timm

    return sorted(timm.list_models())


def knows(name: str) -> bool:
    """Say whether ``name`` is a timm model; a weights tag must be one timm knows."""
    import timm

    return bool(timm.is_model(name)) and ("." not in name or bool(timm.models.is_model_pretrained(name)))


def create(name: str, *, num_classes: int, image_size: int, pretrained: bool) -> nn.Module:
    """Build ``name`` for ``num_classes`` at ``image_size``; with ``pretrained`` timm's weights, under a new head.

    Raises ``UserError`` when the weights do not exist or cannot be fetched.
    """
    import timm

    model = _create(name, image_size, num_classes=num_classes)
    if not pretrained:
        return model
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise UserError(f"model.weights: got 'imagenet', which timm does not have for {name!r}; allowed: none, a path")
    try:
        return _create(name, image_size, num_classes=num_classes, pretrained=True)
    except Exception as error:  # the model itself was built above: what fails here is the download, in many ways
        place = f"the Hugging Face hub ({config.hf_hub_id})" if config.hf_hub_id else config.url
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model.weights: imagenet weights of {name!r} could not be fetched from {place} ({reason}); "
            "allowed: none, a path, or imagenet with the network or the hub's cache in reach"
        ) from None


def _create(name: str, image_size: int, **arguments: Any) -> nn.Module:
    """Build with ``img_size`` where the architecture takes it; the others work at any size."""
    import timm

    try:
        model: nn.Module = timm.create_model(name, img_size=image_size, **arguments)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        model = timm.create_model(name, **arguments)
    return model
