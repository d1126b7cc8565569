"""scikit-learn's handwritten digits: 1,797 grey 8×8 images that ship with the library; needs no network.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
The class is the digit and, as no person is recorded, the group is the class.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from fairquant.config.base import Section
from fairquant.data.raw import DataRequest, Pixels, RawDataset, RawSample, choose, choose_groups
from fairquant.errors import DataError

COLUMN = "digit"


class Options(Section):
    """digits has no settings."""


def load(request: DataRequest, options: Options) -> RawDataset:
    """Return all 1,797 digits; no split is published."""
    from sklearn.datasets import load_digits

    choose("data.label", request.label, [COLUMN], COLUMN)
    choose_groups(request.group, [COLUMN], [COLUMN])
    if request.split_by is not None:
        raise DataError(f"data.split_by: got {request.split_by!r}; allowed: null for digits, which records no writer")
    bunch = load_digits()
    samples = [
        RawSample(f"digit-{row:04d}", row, str(target), (str(target),), partial(_grey, image.astype(np.uint8)))
        for row, (image, target) in enumerate(zip(bunch.images, bunch.target, strict=True), start=1)
    ]
    names = tuple(str(digit) for digit in range(10))
    return RawDataset("scikit-learn digits", names, (COLUMN,), samples, group_order={COLUMN: names})


def _grey(ink: Pixels) -> Pixels:
    """Scale 0…16 to 0…255."""
    scaled: Pixels = np.rint(ink * (255 / 16)).astype(np.uint8)
    return scaled
