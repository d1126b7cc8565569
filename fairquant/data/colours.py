"""Any kind of image → RGB of 8 bits, by rules that lose no contrast silently.

- Grey of more than 8 bits: the range is the smallest of 8, 12 and 16 bits that holds the image's values, and
  v ↦ round(255 v / (2^bits − 1)). Medical images have 12 bits in files of 16; taken as 16 they would be near black.
  Fractions in [0, 1] are times 255. Anything else (negative values, as of computed tomography) has no range that could
  be known, and is refused.
- Opacity is dropped: a pixel has the colour it is stored with, however transparent it is.
- Palettes become their colours, CMYK is (255 − ink)(255 − black) / 255, colour profiles are not applied.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

DEPTHS = (8, 12, 16)
"""Bits that grey values are taken to have."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Return ``image`` in mode RGB; ``ValueError`` for values whose range is unknown."""
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(scale_grey(np.asarray(image)))
    return image.convert("RGB")


def scale_grey(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Return grey values of any depth as 8 bits.

    >>> scale_grey(np.array([0, 2048, 4095])).tolist(), scale_grey(np.array([0.0, 0.5, 1.0])).tolist()
    ([0, 128, 255], [0, 128, 255])

    Raises:
        ValueError: values are not finite, below 0 or above 65535.
    """
    grey = values.astype(np.float64)
    low, high = (float(end) for end in (grey.min(initial=0), grey.max(initial=0)))
    if not (low >= 0 and high < 2 ** DEPTHS[-1]):  # false for NaN as well
        raise ValueError(
            f"got grey values from {low:g} to {high:g}; allowed: 0 to {2 ** DEPTHS[-1] - 1}, or 0.0 to 1.0"
        )
    if high <= 1 and np.issubdtype(values.dtype, np.floating):
        largest = 1
    else:
        largest = next(2**bits - 1 for bits in DEPTHS if high < 2**bits)
    scaled: npt.NDArray[np.uint8] = np.rint(grey * (255 / largest)).astype(np.uint8)
    return scaled
