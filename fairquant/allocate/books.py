"""Codebooks: which channels of a layer share one, and how many values it holds.

Weights quantized by k-means are codes of b bits that point into a codebook of 2^b values (Han, Mao & Dally 2016, "Deep
Compression", arXiv 1510.00149, section 3). A codebook serves one width: with ``per: channel`` it is that of one output
channel, with ``per: tensor`` that of all channels of a layer which have the same width, so that a layer of mixed widths
has one codebook for each of them. It never holds more values than there are weights that point into it. Widths of 0
(pruned) and 32 (untouched) need none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fairquant.allocate.bitmap import Per
from fairquant.errors import UserError

WIDEST = 8
"""Bits of the widest code: 256 values."""


@dataclass(frozen=True)
class Book:
    """One codebook: the output ``channels`` it serves, their ``width`` in bits, and how many ``values`` it holds."""

    channels: npt.NDArray[np.int64]
    width: int
    values: int


def books_of(widths: npt.NDArray[np.uint8], shape: tuple[int, ...], per: Per) -> tuple[Book, ...]:
    """Return the codebooks of a weight of ``shape`` (out, …) whose ``widths`` are () or (out,).

    Those of channels stand in the order of the channels, those of widths in ascending order. Raises ``UserError`` for a
    width without a codebook (9 to 16) and for widths of single weights.

    >>> [(b.channels.tolist(), b.width, b.values) for b in books_of(np.uint8([2, 4, 0, 2, 32]), (5, 3), "tensor")]
    [([0, 3], 2, 4), ([1], 4, 3)]
    """
    if widths.ndim > 1:
        raise UserError("codebook: got a width for every single weight; allowed: one per layer or output channel")
    of_channels = np.broadcast_to(widths, (shape[0],))
    present = [width for width in np.unique(of_channels).tolist() if 0 < width < 32]
    if present and present[-1] > WIDEST:
        raise UserError(f"bit-width: got {present[-1]}; allowed: 0 to {WIDEST}, or 32 (codebooks of up to 256 values)")
    by_width = {width: np.flatnonzero(of_channels == width) for width in present}
    if per == "tensor":
        shared = [(channels, width) for width, channels in by_width.items()]
    else:
        alone = sorted((channel, width) for width, channels in by_width.items() for channel in channels.tolist())
        shared = [(np.array([channel]), width) for channel, width in alone]
    inputs = math.prod(shape[1:])
    return tuple(Book(channels, width, min(2**width, len(channels) * inputs)) for channels, width in shared)
