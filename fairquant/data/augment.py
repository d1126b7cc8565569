"""Random augmentation of a batch on the fly; every draw comes from one explicit generator, one row per image.

off: the image as it is. light: horizontal flip (p 1/2) and rotation by up to ±15°. paper: horizontal and vertical flip
(p 1/2 each), rotation by up to ±15°, and AutoAugment with its ImageNet policies (Cubuk et al. 2019), as in
Wørgaard & Selvan 2026. light has no vertical flip because faces and digits have an upside.

Flips and rotation are one affine resampling (bilinear, mirrored beyond the border) of the whole batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

MAX_DEGREES = 15.0
"""Largest rotation to either side."""

AUGMENTATIONS = ("off", "light", "paper")


@dataclass(frozen=True)
class Draws:
    """The random numbers of N images, drawn ahead so that they depend on neither batch size nor threads."""

    uniform: Tensor  # (N, 3) in [0, 1): horizontal flip, vertical flip, angle
    policy: Tensor  # (N, 5) in [0, 1): policy, two probabilities, two signs

    def at(self, start: int, stop: int) -> Draws:
        """Return the draws of images ``start`` to ``stop``."""
        return Draws(self.uniform[start:stop], self.policy[start:stop])


def draw(count: int, generator: torch.Generator) -> Draws:
    """Draw the random numbers of ``count`` images from a CPU generator."""
    return Draws(torch.rand(count, 3, generator=generator), torch.rand(count, 5, generator=generator))


def augment(images: Tensor, name: str, draws: Draws) -> Tensor:
    """Return the augmented batch.

    Args:
        images: uint8 (B, 3, H, W).
        name: off | light | paper.
        draws: of the same B images.

    Returns:
        (B, 3, H, W): float32 in [0, 255], or ``images`` itself where ``name`` is off.
    """
    if name == "off":
        return images
    moved = _move(images, draws, vertical=name == "paper")
    return _auto_augment(moved, draws) if name == "paper" else moved


def _move(images: Tensor, draws: Draws, *, vertical: bool) -> Tensor:
    """Flip and rotate by one resampling: output pixel p takes its value from R(angle)·diag(flip)·p."""
    flip, rise, turn = draws.uniform.to(images.device).unbind(1)
    sign_x = torch.where(flip < 0.5, -1.0, 1.0)
    sign_y = torch.where(rise < 0.5, -1.0, 1.0) if vertical else torch.ones_like(sign_x)
    angle = (turn * 2 - 1) * math.radians(MAX_DEGREES)
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    matrix = torch.stack([cos * sign_x, -sin * sign_y, zero, sin * sign_x, cos * sign_y, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _auto_augment(images: Tensor, draws: Draws) -> Tensor:
    """Apply one ImageNet policy per image; torchvision's own draws are replaced by ours (theirs are global)."""
    from torchvision.transforms import AutoAugment

    policy: Any = AutoAugment()
    pixels = images.round().clamp(0, 255).to(torch.uint8)
    results = []
    for image, row in zip(pixels, draws.policy.tolist(), strict=True):
        chosen = (int(row[0] * len(policy.policies)), torch.tensor(row[1:3]), torch.tensor([v < 0.5 for v in row[3:]]))
        policy.get_params = lambda _count, chosen=chosen: chosen
        results.append(policy(image))
    return torch.stack(results).float()
