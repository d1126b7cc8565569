"""The true size of a quantized model: every byte a packed file needs, beside the estimate published results use.

- weights: each layer's weights packed at their widths, Σ bits/8, rounded up to whole bytes per layer; 32-bit weights
  are fp32, 0-bit weights take nothing;
- scales, fp32: one per layer (per_tensor) or out channel (per_channel), one per width in a channel (per_param); weights
  of 0 and 32 bits need none. Where grids are asymmetric, every scale of 2 to 16 bits brings a zero point of as many
  bits (it is one of the codes 0…2^b − 1), packed layer by layer and counted with the scales.
  Where weights are codes into codebooks, these take the place of scales: four bytes for each value of each codebook
  (``fairquant.allocate.books``), and are counted as scales;
- width map: which unit has which width, in a Huffman code over the model's units (Huffman 1952), with a table of two
  bytes (width, code length) per width; .2/.4/.4 costs 1.6 bits per unit, a single width nothing but its table entry;
- rest: everything that is not a quantizable weight (biases, batch norm, …), fp32.

File headers and names are left out. A megabyte is 10⁶ bytes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fairquant.allocate.bitmap import BitMap, Scheme
from fairquant.allocate.books import books_of

FLOAT_BYTES = 4
TABLE_BYTES = 2
MEGABYTE = 1e6


@dataclass(frozen=True)
class SizeReport:
    """Byte counts; ``reference`` is Σ bits/8 of quantizable weights alone, ``fp32`` the uncompressed model.

    Zero points and codebooks are among the ``scales``.
    """

    weights: int
    scales: int
    width_map: int
    rest: int
    reference: int
    fp32: int

    @property
    def packed(self) -> int:
        """Bytes of the packed model: weights, scales, width map and rest."""
        return self.weights + self.scales + self.width_map + self.rest

    @property
    def ratio(self) -> float:
        """How many times smaller than fp32 the packed model is."""
        return self.fp32 / self.packed if self.packed else math.nan

    def to_dict(self) -> dict[str, float]:
        """Return megabytes by name (``packed_mb``, ``reference_mb``, …) and ``ratio``."""
        names = ("packed", "weights", "scales", "width_map", "rest", "reference", "fp32")
        return {**{f"{name}_mb": getattr(self, name) / MEGABYTE for name in names}, "ratio": self.ratio}


def size_report(bits: BitMap, shapes: Mapping[str, tuple[int, ...]], *, rest: int) -> SizeReport:
    """Return the size of a model with widths ``bits``, weight ``shapes`` by layer and ``rest`` other parameters."""
    weight_bits = {name: _weight_bits(bits, name, math.prod(shapes[name])) for name in bits.layers}
    n_weights = sum(math.prod(shapes[name]) for name in bits.layers)
    return SizeReport(
        weights=sum(-(-total // 8) for total in weight_bits.values()),
        scales=sum(_grid_bytes(bits, name, shapes[name]) for name in bits.layers),
        width_map=_map_bytes(bits),
        rest=FLOAT_BYTES * rest,
        reference=-(-sum(weight_bits.values()) // 8),
        fp32=FLOAT_BYTES * (n_weights + rest),
    )


def _weight_bits(bits: BitMap, layer: str, parameters: int) -> int:
    per_unit = parameters // bits.layers[layer].size
    return sum(width * units * per_unit for width, units in bits.counts(layer).items())


def grid_bits(width: int, scheme: Scheme) -> int:
    """Return the bits of a scale at ``width`` bits, and of its zero point where the scheme has one.

    >>> [grid_bits(width, "symmetric") for width in (0, 1, 4, 32)], grid_bits(4, "asymmetric")
    ([0, 32, 32, 0], 36)
    """
    scale = 8 * FLOAT_BYTES if 0 < width < 32 else 0
    return scale + (width if scheme != "symmetric" and 1 < width < 32 else 0)


def _grid_bytes(bits: BitMap, layer: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a layer's scales and zero points, one for each (layer or out channel, width) pair.

    Or of its codebooks, where it has those.
    """
    widths, scheme = bits.layers[layer], bits.scheme
    if bits.codebook is not None:
        return FLOAT_BYTES * sum(book.values for book in books_of(widths, shape, bits.codebook))
    channels = widths.reshape(len(widths) if widths.ndim else 1, -1)
    numbers = {width: int(np.count_nonzero((channels == width).any(axis=1))) for width in np.unique(widths).tolist()}
    return -(-sum(grid_bits(width, scheme) * number for width, number in numbers.items()) // 8)


def _map_bytes(bits: BitMap) -> int:
    frequencies: dict[int, int] = {}
    for layer in bits.layers:
        for width, units in bits.counts(layer).items():
            frequencies[width] = frequencies.get(width, 0) + units
    lengths = huffman_lengths(frequencies)
    coded = sum(lengths[width] * units for width, units in frequencies.items())
    return -(-coded // 8) + TABLE_BYTES * len(frequencies)


def huffman_lengths(frequencies: Mapping[int, int]) -> dict[int, int]:
    """Return the code length in bits of each symbol in a Huffman code; a lone symbol needs 0.

    >>> huffman_lengths({2: 20, 4: 40, 8: 40})
    {2: 2, 4: 2, 8: 1}
    """
    lengths = dict.fromkeys(sorted(frequencies), 0)
    heap = [(frequencies[symbol], rank, [symbol]) for rank, symbol in enumerate(lengths)]
    heapq.heapify(heap)
    rank = len(heap)
    while len(heap) > 1:
        low, high = heapq.heappop(heap), heapq.heappop(heap)
        for symbol in (merged := low[2] + high[2]):
            lengths[symbol] += 1
        heapq.heappush(heap, (low[0] + high[0], rank, merged))
        rank += 1
    return lengths
