"""The grid of one activation point as an exported graph has it.

A code q stands for Δ · (q − z), as in ``fairquant.quantize.affine``; only codes from ``least`` to ``largest`` are used.
Fixed grids of up to 8 bits are stored as uint8, symmetric ones around 128: onnxruntime multiplies uint8 by int8 only.
Where the type holds codes that are not in use, they are clipped between QuantizeLinear and DequantizeLinear.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fairquant.quantize.activation import ActivationQuantizer

INTEGER_BITS = 8
MIDDLE = 128


@dataclass(frozen=True)
class ActivationGrid:
    """How the activations of a point are rounded.

    Attributes:
        bits: 2 to 16.
        symmetric: whether the grid is symmetric around 0.
        least: the least code in use.
        largest: the largest.
        scale: Δ; None where it is that of each incoming tensor (dynamic).
        zero: z; None where dynamic.
    """

    bits: int
    symmetric: bool
    least: int
    largest: int
    scale: np.float32 | None
    zero: int | None

    @classmethod
    def of(cls, quantizer: ActivationQuantizer) -> ActivationGrid:
        """Return the grid of a quantizer that has one, or is dynamic."""
        codes = quantizer.codes
        if quantizer.scale is None or quantizer.zero_point is None:
            return cls(quantizer.bits, codes.symmetric, codes.least, codes.largest, None, None)
        scale, zero = np.float32(quantizer.scale.detach().cpu().numpy()), int(quantizer.zero_point)
        moved = MIDDLE if codes.symmetric and quantizer.bits <= INTEGER_BITS else 0
        return cls(quantizer.bits, codes.symmetric, codes.least + moved, codes.largest + moved, scale, zero + moved)

    @property
    def dynamic(self) -> bool:
        """Whether the grid is that of each incoming tensor."""
        return self.scale is None

    @property
    def integer(self) -> bool:
        """Whether codes are 8-bit integers of a fixed grid."""
        return not self.dynamic and self.bits <= INTEGER_BITS

    @property
    def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.int8]:
        """The type of the codes of an integer grid."""
        return np.dtype(np.int8) if self.least < 0 else np.dtype(np.uint8)

    @property
    def clips(self) -> bool:
        """Whether the type of the codes holds codes that are not in use."""
        kind = np.iinfo(self.dtype)
        return (self.least, self.largest) != (kind.min, kind.max)

    def whole(self) -> ActivationGrid:
        """Return the grid with all codes of its type in use."""
        kind = np.iinfo(self.dtype)
        return replace(self, least=int(kind.min), largest=int(kind.max))

    def code(self, value: float) -> int:
        """Return the code of a number, which may lie outside those in use.

        >>> ActivationGrid(8, False, 0, 255, np.float32(0.5), 10).code(-1.0)
        8
        """
        assert self.scale is not None and self.zero is not None  # not dynamic
        return int(np.rint(np.float32(value) * (np.float32(1) / self.scale))) + self.zero

    def within(self, low: float, high: float) -> ActivationGrid:
        """Return the grid for activations cut to [low, high] before they are rounded, which then need not be.

        Rounding is monotonic, so that the code of what is cut is the code of the number, cut to those of the ends.

        >>> grid = ActivationGrid(4, False, 0, 15, np.float32(0.5), 3).within(0.0, 6.0)
        >>> grid.least, grid.largest
        (3, 15)
        """
        ends = [self.least if low == -np.inf else self.code(low), self.largest if high == np.inf else self.code(high)]
        least, largest = (min(max(end, self.least), self.largest) for end in ends)
        return replace(self, least=least, largest=largest)

    def signed(self) -> ActivationGrid:
        """Return a symmetric grid of int8 that covers the range of this one, and uses all codes.

        Δ = max(|low|, |high|) / 127 of the range [low, high] that the codes in use stand for. A symmetric grid of 8
        bits keeps its Δ.

        >>> ActivationGrid(8, False, 0, 255, np.float32(0.01), 55).signed().scale
        np.float32(0.015748031)
        """
        assert self.scale is not None and self.zero is not None  # not dynamic
        reach = np.float64(self.scale) * max(self.largest - self.zero, self.zero - self.least)
        scale = self.scale if self.symmetric and self.bits == INTEGER_BITS else np.float32(reach / 127)
        return ActivationGrid(INTEGER_BITS, True, -128, 127, scale, 0)
