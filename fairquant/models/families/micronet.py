"""Three small networks that quantization studies use: ``nin``, ``nin_gc`` and ``face_cnn``.

- ``nin``: network in network (Lin, Chen & Yan 2014, arXiv 1312.4400): 5×5, 5×5 and 3×3 convolutions, each followed by
  two 1×1 ones; the last 1×1 convolution puts out a map for each class, whose mean over positions is the logit.
- ``nin_gc``: wider, its convolutions in groups, channels shuffled before a grouped one so that groups mix (Zhang et al.
  2018, ShuffleNet, arXiv 1707.01083).
- ``face_cnn``: a face network for 48 × 48 grey images with three heads, age, gender and race, over a common trunk: six
  3×3 convolutions in the trunk; two more and four linear layers in a head. No batch norm.

Widths, kernels and groups are those of the micronet family of compression studies. What differs here: batch norm and
rectifier do not follow the last convolution of nin and nin_gc (logits below 0 are possible, and a network cannot start
with all of them at 0), the mean is over all positions whatever the image size, and of the face network there is one
head, that of the target the data set is asked for, with as many outputs as the target has classes; age is classified in
bands. The face network turns colour to grey itself, by the luma weights of ITU-R BT.601, after normalisation: for grey
pictures stored in three equal channels that is the picture itself.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from fairquant.models.families._checks import check_request

LUMA = (0.299, 0.587, 0.114)
"""Share of red, green and blue in grey (ITU-R BT.601); they sum to 1."""
SMALLEST = {"face_cnn": 32, "nin": 8, "nin_gc": 8}
"""Pixels; the face network halves its image five times, the others twice."""


def names() -> list[str]:
    """Return the sorted names of the family."""
    return sorted(SMALLEST)


def knows(name: str) -> bool:
    """Say whether ``name`` is one of the family."""
    return name in SMALLEST


def create(name: str, *, num_classes: int, image_size: int, pretrained: bool) -> nn.Module:
    """Build ``name`` for ``num_classes`` at ``image_size``.

    Raises ``UserError`` for a size below 8 pixels (face_cnn: 32), and for ``pretrained``: no ImageNet weights exist.
    """
    check_request(name, image_size=image_size, smallest=SMALLEST[name], pretrained=pretrained)
    makers: dict[str, Callable[[], nn.Module]] = {
        "nin": lambda: _network_in_network(num_classes),
        "nin_gc": lambda: _grouped_network_in_network(num_classes),
        "face_cnn": lambda: FaceCnn(num_classes, image_size),
    }
    model = makers[name]()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.get_parameter("bias"))
    return model


class Shuffle(nn.Module):
    """Deals the channels out to ``groups`` in turn: (B, groups · n, H, W), channel g · n + i → i · groups + g."""

    def __init__(self, groups: int) -> None:
        """Take the number of groups that the channels come in."""
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with its channels in another order."""
        return torch.unflatten(x, 1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


class Grey(nn.Module):
    """Colour to grey by luma weights: (B, 3, H, W) → (B, 1, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighted sum of the channels."""
        red, green, blue = LUMA
        return red * x[:, 0:1] + green * x[:, 1:2] + blue * x[:, 2:3]


class FaceCnn(nn.Module):
    """Trunk and the head of one target: (B, 3, ``image_size``, ``image_size``) → (B, ``num_classes``)."""

    def __init__(self, num_classes: int, image_size: int) -> None:
        """Build for images of one size: the head's linear layers see every position."""
        super().__init__()
        trunk: list[nn.Module] = [Grey()]
        for before, after in pairwise((1, 32, 64, 128)):
            trunk += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), *_pooled(after, after)]
        self.trunk = nn.Sequential(*trunk)
        side = -(-image_size // 32)  # halved, rounded up, five times
        widths = (512 * side * side, 256, 128, 64)
        linear = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
        head = [*_pooled(128, 256), *_pooled(256, 512), nn.Flatten(), *linear, nn.Linear(widths[-1], num_classes)]
        self.head = nn.Sequential(*head)

    def forward(self, x: Tensor) -> Tensor:
        """Return one logit per class of the target."""
        logits: Tensor = self.head(self.trunk(x))
        return logits


def _pooled(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1), nn.ReLU()]


def _network_in_network(num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        _unit(3, 192, 5),
        _unit(192, 160, 1),
        _unit(160, 96, 1),
        nn.MaxPool2d(3, stride=2, padding=1),
        _unit(96, 192, 5),
        _unit(192, 192, 1),
        _unit(192, 192, 1),
        nn.MaxPool2d(3, stride=2, padding=1),
        _unit(192, 192, 3),
        _unit(192, 192, 1),
        *_classifier(192, num_classes),
    )


def _grouped_network_in_network(num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        _unit(3, 256, 5),
        _unit(256, 256, 1, groups=2),
        _unit(256, 256, 1, groups=2, shuffle=2),
        nn.MaxPool2d(2),
        _unit(256, 512, 3, groups=16, shuffle=2),
        _unit(512, 512, 1, groups=4, shuffle=16),
        _unit(512, 512, 1, groups=4, shuffle=4),
        nn.MaxPool2d(2),
        _unit(512, 1024, 3, groups=32, shuffle=4),
        _unit(1024, 1024, 1, groups=8, shuffle=32),
        *_classifier(1024, num_classes),
    )


def _unit(before: int, after: int, kernel: int, *, groups: int = 1, shuffle: int = 1) -> nn.Sequential:
    """Return convolution, batch norm and rectifier, after a shuffle of the ``shuffle`` groups the channels come in."""
    layers = [
        nn.Conv2d(before, after, kernel, padding=kernel // 2, groups=groups),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    ]
    return nn.Sequential(*([Shuffle(shuffle)] if shuffle > 1 else []), *layers)


def _classifier(before: int, num_classes: int) -> list[nn.Module]:
    """Return a map for each class and its mean."""
    return [nn.Conv2d(before, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
