import math

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as vision

from fairquant.data.augment import MAX_DEGREES, Draws, augment, draw, equalize


def images(count=4, size=12, seed=0):
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def draws(flip=0.9, rise=0.9, turn=0.5, count=4):
    """Nothing happens at the defaults: no flip and the middle of ±15°."""
    return Draws(torch.tensor([[flip, rise, turn]]).repeat(count, 1), torch.full((count, 5), 0.99))


def test_off_is_the_image_itself():
    pixels = images()
    assert augment(pixels, "off", draws()) is pixels


def test_no_flip_and_no_turn_is_the_identity():
    pixels = images()
    assert torch.allclose(augment(pixels, "light", draws()), pixels.float(), atol=1e-2)


def test_flips_agree_with_torch():
    pixels = images()
    assert torch.allclose(augment(pixels, "light", draws(flip=0.1)), pixels.flip(3).float(), atol=1e-2)
    assert torch.allclose(augment(pixels, "light", draws(rise=0.1)), pixels.float(), atol=1e-2), "light keeps upside up"


@pytest.mark.parametrize("turn", [0.0, 0.25, 0.75, 1.0])
def test_rotation_agrees_with_torchvision(turn):
    y, x = torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij")
    pixels = (x * 5 + y * 2).round().to(torch.uint8).expand(1, 3, 33, 33)
    turned = augment(pixels, "light", draws(turn=turn, count=1))
    degrees = (turn * 2 - 1) * MAX_DEGREES
    oracle = vision.rotate(pixels.float(), degrees, vision.InterpolationMode.BILINEAR)
    inner = slice(8, 25)  # away from the border, which we mirror and torchvision blackens
    assert (turned - oracle)[..., inner, inner].abs().max() < 0.6


def test_the_border_is_mirrored_not_black():
    white = torch.full((1, 3, 12, 12), 255, dtype=torch.uint8)
    assert augment(white, "light", draws(turn=1.0, count=1)).min() > 254


def test_angles_and_flips_are_drawn_evenly():
    drawn = draw(4000, torch.Generator().manual_seed(0))
    degrees = (drawn.uniform[:, 2] * 2 - 1) * MAX_DEGREES
    assert degrees.abs().max() <= 15 and degrees.std() == pytest.approx(30 / math.sqrt(12), rel=0.03)
    assert (drawn.uniform[:, :2] < 0.5).float().mean(dim=0).tolist() == pytest.approx([0.5, 0.5], abs=0.03)
    assert drawn.at(10, 12).uniform.shape == (2, 3)


def test_paper_flips_both_ways_and_applies_auto_augment():
    from torchvision.transforms import AutoAugment

    pixels = images()
    chosen = Draws(draws(rise=0.1).uniform, torch.tensor([[0.21, 0.0, 0.0, 0.1, 0.9]]).repeat(4, 1))
    result = augment(pixels, "paper", chosen)
    oracle = AutoAugment()
    oracle.get_params = lambda count: (int(0.21 * count), torch.tensor([0.0, 0.0]), torch.tensor([True, False]))
    assert torch.equal(result, torch.stack([oracle(image) for image in pixels.flip(2)]).float())
    assert result.min() >= 0 and result.max() <= 255


def test_a_policy_not_chosen_by_chance_changes_nothing():
    pixels = images()
    policy = torch.tensor([[0.0, 0.999, 0.999, 0.5, 0.5]]).repeat(4, 1)
    flipped = augment(pixels, "paper", Draws(draws().uniform, policy))
    assert torch.allclose(flipped, pixels.float(), atol=1e-2)


def one_by_one(pixels, policies):
    """Let torchvision's AutoAugment see each image alone, with our draws."""
    from torchvision.transforms import AutoAugment

    results = []
    for image, row in zip(pixels, policies.tolist(), strict=True):
        oracle = AutoAugment()
        place, chances, signs = row[0], torch.tensor(row[1:3]), torch.tensor([value < 0.5 for value in row[3:]])
        oracle.get_params = lambda count, found=(place, chances, signs): (int(found[0] * count), *found[1:])
        results.append(oracle(image))
    return torch.stack(results).float()


@pytest.mark.parametrize("size", [1, 9, 32])
def test_images_that_share_an_operation_come_out_as_they_do_alone(size):
    pixels = images(count=200, size=size)
    pixels[::7] = pixels[::7] // 64 * 64
    drawn = Draws(draws(count=200).uniform, draw(200, torch.Generator().manual_seed(1)).policy)
    moved = augment(pixels, "paper", Draws(drawn.uniform, torch.full((200, 5), 0.999)))  # no operation happens
    assert torch.equal(augment(pixels, "paper", drawn), one_by_one(moved.to(torch.uint8), drawn.policy))


@pytest.mark.parametrize("kind", ["noise", "dark", "few values", "flat", "one odd pixel"])
def test_equalize_agrees_with_pillow(kind):
    from PIL import Image, ImageOps

    pixels = images(count=1, size=40, seed=2)[0]
    if kind == "dark":
        pixels = pixels // 8
    elif kind == "few values":
        pixels = pixels // 100 * 100
    elif kind != "noise":
        pixels = torch.full_like(pixels, 77)
        if kind == "one odd pixel":
            pixels[:, 3, 5] = 200
    oracle = ImageOps.equalize(Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()))
    both = equalize(torch.stack([pixels, pixels.flip(0)]))
    assert both[0].permute(1, 2, 0).numpy().tolist() == np.asarray(oracle).tolist()
    assert torch.equal(both[1], both[0].flip(0)), "each channel alone"
