"""What families defined here refuse: image sizes too small for them, and weights nobody published for ImageNet."""

from __future__ import annotations

from fairquant.errors import UserError


def check_request(name: str, *, image_size: int, smallest: int, pretrained: bool) -> None:
    """Raise ``UserError`` for an ``image_size`` below ``smallest`` pixels, or where ImageNet weights are asked for."""
    if pretrained:
        raise UserError(f"model.weights: got 'imagenet', which does not exist for {name!r}; allowed: none, a path")
    if image_size < smallest:
        raise UserError(f"data.image_size: got {image_size} with model.name {name!r}; allowed: {smallest} or more")
