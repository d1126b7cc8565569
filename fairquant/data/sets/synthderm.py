"""synthderm: a procedural, seeded, dermatoscopy-like data set with a built-in disparity. SYNTHETIC: no claim about
people, skin or medicine follows from it; it exists so that the pipeline runs anywhere, without network or licence.

Skin tone is drawn from Fitzpatrick-like ITA bands I–VI, which are the groups. The class is decided by the lesion alone:
with border irregularity B, colour variegation C and asymmetry A in [0, 1], malignant ⇔ (B + C + A) / 3 > 1/2. The
class shares are equal in all groups. Dark tones are fewer and their lesions fainter, so that a classifier serves them
worse and compression can widen the gap.

Measured at the defaults, 32 px, resnet18 trained from scratch for six epochs with light augmentation (one run): 83.5 %
of the test images right overall, 71 % in VI, 80 % in V, 86 to 89 % in II to IV.
"""  # noqa: D205, D400

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator

from fairquant.config.base import Int, Real, Section, number
from fairquant.data.derm import ITA_BANDS, Lesion, draw
from fairquant.data.raw import DataRequest, RawDataset, RawSample, choose, choose_groups
from fairquant.errors import DataError

TONES = tuple(ITA_BANDS)
BINARY_TONES = ("I-III", "IV-VI")
PROTOTYPES = {
    "nevus": (0.15, 0.15, 0.1),
    "dysplastic": (0.85, 0.15, 0.5),
    "keratosis": (0.15, 0.85, 0.3),
    "melanoma": (0.85, 0.85, 0.9),
}
"""Border, colour and asymmetry at the centre of each class of the multi-class variant."""

Share = Annotated[Real, Field(gt=0, le=1, description="a share in (0, 1]")]


class Options(Section):
    """Settings of the generator.

    Attributes:
        samples: how many images.
        group_shares: share of each tone I…VI; must sum to 1.
        classes: benign | malignant, or four kinds of lesion.
        malignant_share: share of malignant images in the binary variant.
        groups: six tones, or two: I–III and IV–VI.
        difficulty: more noise and hair, fainter lesions on dark skin, lesions closer to the decision boundary.
    """

    samples: Int = number(5000, ge=60, le=1_000_000)
    group_shares: tuple[Share, Share, Share, Share, Share, Share] = (0.2, 0.25, 0.2, 0.15, 0.12, 0.08)
    classes: Literal["binary", "multiclass"] = "binary"
    malignant_share: Real = number(0.4, gt=0, lt=1)
    groups: Literal["tones", "binary_groups"] = "tones"
    difficulty: Real = number(0.35, ge=0, le=1)

    @field_validator("group_shares")
    @classmethod
    def _sum_to_one(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if abs(sum(value) - 1) > 1e-6:
            raise ValueError("six shares that sum to 1")
        return value


def load(request: DataRequest, options: Options) -> RawDataset:
    """Return samples whose images are drawn when they are decoded; the seed is data.seed. No split is published."""
    choose("data.label", request.label, ["diagnosis"], "diagnosis")
    choose_groups(request.group, ["tone"], ["tone"])
    if request.split_by is not None:
        raise DataError(f"data.split_by: got {request.split_by!r}; allowed: null for synthderm, one image per person")
    random = np.random.default_rng([request.seed, 20240])
    shares = {name: 1 / len(PROTOTYPES) for name in PROTOTYPES}
    if options.classes == "binary":
        shares = {"benign": 1 - options.malignant_share, "malignant": options.malignant_share}
    tones = _deal(TONES, options.group_shares, options.samples)
    labels = [label for tone in TONES for label in _deal(tuple(shares), tuple(shares.values()), tones.count(tone))]
    order = random.permutation(options.samples)
    samples = [
        _sample(row, tones[index], labels[index], request, options, random)
        for row, index in enumerate(order.tolist(), 1)
    ]
    names = BINARY_TONES if options.groups == "binary_groups" else TONES
    return RawDataset(
        "synthderm (procedurally generated, synthetic)", tuple(shares), ("tone",), samples, group_order={"tone": names}
    )


def _deal(names: tuple[str, ...], shares: tuple[float, ...], count: int) -> list[str]:
    """Return ``count`` names in the given shares, each to one, by rounding the cumulative shares."""
    ends = np.floor(np.cumsum(shares) / sum(shares) * count + 0.5).astype(int)
    return [name for name, length in zip(names, np.diff(ends, prepend=0), strict=True) for _ in range(length)]


def _sample(
    row: int, tone: str, label: str, request: DataRequest, options: Options, random: np.random.Generator
) -> RawSample:
    lesion = _draw_lesion(label, options.difficulty, random)
    ita = float(random.uniform(*ITA_BANDS[tone]))
    group = tone if options.groups == "tones" else BINARY_TONES[TONES.index(tone) >= 3]
    image = partial(
        draw, ita, lesion, size=request.image_size, seed=(request.seed, 7, row), difficulty=options.difficulty
    )
    attributes = {
        "tone": tone,
        "ita": f"{ita:.2f}",
        "border": f"{lesion.border:.4f}",
        "colour": f"{lesion.colour:.4f}",
        "asymmetry": f"{lesion.asymmetry:.4f}",
    }
    return RawSample(f"synthderm-{row:06d}", row, label, (group,), image, attributes=attributes)


def _draw_lesion(label: str, difficulty: float, random: np.random.Generator) -> Lesion:
    if label in PROTOTYPES:
        spread = 0.05 + 0.05 * difficulty
        return Lesion(*(float(v) for v in np.array(PROTOTYPES[label]) + random.uniform(-spread, spread, 3)))
    margin = 0.15 * (1 - difficulty)
    distance = random.uniform(0.02 + margin, 0.32)
    centre = 0.5 + distance if label == "malignant" else 0.5 - distance
    jitter = random.uniform(-0.2, 0.2, 3)
    return Lesion(*(float(np.clip(value, 0, 1)) for value in centre + jitter - jitter.mean()))
