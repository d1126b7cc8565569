"""Random augmentation of a batch on the fly; every draw comes from one explicit generator, one row per image.

off: the image as it is. light: horizontal flip (p 1/2) and rotation by up to ±15°. paper: horizontal and vertical flip
(p 1/2 each), rotation by up to ±15°, and AutoAugment with its ImageNet policies (Cubuk et al. 2019), as in
Wørgaard & Selvan 2026. light has no vertical flip because faces and digits have an upside.

Flips and rotation are one affine resampling (bilinear, mirrored beyond the border) of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

MAX_DEGREES = 15.0
"""Largest rotation to either side."""

AUGMENTATIONS = ("off", "light", "paper")
SIGNLESS = frozenset({"AutoContrast", "Equalize", "Invert", "Posterize", "Solarize"})
"""Operations of AutoAugment without a direction."""
SINGLY = frozenset({"Contrast"})
"""Operations that sum over an image: over several images at once sums may be rounded otherwise."""


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
        (B, 3, H, W): float32 in [0, 255], or ``images`` itself where ``name`` is off or B is 0.
    """
    if name == "off" or len(images) == 0:  # a process may have no part of a small batch
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
    """Apply one ImageNet policy per image; torchvision's own draws are replaced by ours (theirs are global).

    Images with the same operation go through it together: a batch takes some forty operations, not two per image.
    """
    from torchvision.transforms import AutoAugment

    policy: Any = AutoAugment()
    policies, pixels = policy.policies, images.round().clamp(0, 255).to(torch.uint8)
    for step in (0, 1):
        for operation, rows in _operations(policies, draws, step).items():
            chosen = torch.tensor(rows, device=pixels.device)
            pixels[chosen] = _apply(policy, operation, pixels[chosen])
    return pixels.float()


def _operations(policies: Sequence[Any], draws: Draws, step: int) -> dict[tuple[Any, ...], list[int]]:
    """Return who goes through what in ``step`` 0 or 1 of the policies: (name, magnitude, sign drawn) → images."""
    probabilities = torch.tensor([policy[step][1] for policy in policies])
    places = [int(value * len(policies)) for value in draws.policy[:, 0].tolist()]
    happens = (draws.policy[:, 1 + step] <= probabilities[places]).tolist()
    positive = (draws.policy[:, 3 + step] < 0.5).tolist()
    found: dict[tuple[Any, ...], list[int]] = {}
    for image, (place, yes, sign) in enumerate(zip(places, happens, positive, strict=True)):
        if yes:
            name, _, magnitude = policies[place][step]
            found.setdefault((name, magnitude, sign or name in SIGNLESS), []).append(image)
    return found


def _apply(policy: Any, operation: tuple[Any, ...], pixels: Tensor) -> Tensor:
    """Return uint8 images (n, 3, H, W) after one operation."""
    name, magnitude, positive = operation
    if name == "Equalize":
        return equalize(pixels)
    policy.policies = [((name, 1.0, magnitude),)]
    policy.get_params = lambda _count: (0, torch.zeros(1), torch.tensor([positive]))
    parts = torch.split(pixels, 1) if name in SINGLY else (pixels,)
    return torch.cat([policy(part) for part in parts])


def equalize(pixels: Tensor) -> Tensor:
    """Return uint8 ``pixels`` (n >= 1, C, H, W) with the histogram of each channel spread evenly.

    As Pillow and torchvision define it: with c(v) pixels of value v, p of them not of the largest value, and
    s = ⌊p / 255⌋, value v becomes ⌊(Σ_{u<v} c(u) + ⌊s / 2⌋) / s⌋, at most 255; a channel with s = 0 stays as it is.

    >>> equalize(torch.arange(0, 256, dtype=torch.uint8).repeat(2).sqrt().to(torch.uint8).view(1, 1, 16, 32)).amax()
    tensor(255, dtype=torch.uint8)
    """
    values = pixels.flatten(2).flatten(0, 1).long()
    apart = values + 256 * torch.arange(len(values), device=pixels.device)[:, None]
    counts = apart.flatten().bincount(minlength=256 * len(values)).view(-1, 256)
    largest = values.amax(1, keepdim=True)
    step = (values.shape[1] - counts.gather(1, largest)).div(255, rounding_mode="floor")
    divisor = step.clamp_min(1)
    below = counts.cumsum(1) - counts
    table = (below + divisor.div(2, rounding_mode="floor")).div(divisor, rounding_mode="floor").clamp_max(255)
    table = torch.where(step == 0, torch.arange(256, device=pixels.device), table)
    return table.to(torch.uint8).gather(1, values).view(pixels.shape)
