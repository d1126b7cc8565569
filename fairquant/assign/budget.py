"""Budgets as costs of widths: bits, packed bytes and bit operations, and what is left for the units to spend.

All costs are counted in whole bits where the budget is (``avg_bits``, ``size_mb``), so that sums are exact. Packed
bytes are those of ``fairquant.cost.size``: weights at their widths, one fp32 scale per unit (or per channel and width)
whose width needs one, with a zero point where grids are asymmetric, the width map, and everything that is not a
quantizable weight.

The width map's code depends on the allocation it describes. Costs are taken with a given prefix code; a Huffman code of
the result is never longer, so a budget that holds with the given code holds for the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from fairquant.allocate.bitmap import BitMap, Granularity, Scheme, unit_shape
from fairquant.allocate.info import ModelInfo
from fairquant.config.schema import BudgetSection
from fairquant.cost.size import FLOAT_BYTES, MEGABYTE, TABLE_BYTES, grid_bits, huffman_lengths

Floats = npt.NDArray[np.float64]
ACTIVATION_BITS = 32


@dataclass(frozen=True)
class Reserve:
    """What a packed file needs beside widths: bits of each width's code, and of grids by layer where they are counted.

    ``grids`` is None where every unit pays for its own scale (and zero point); per parameter it holds the bits that
    those of a layer take.
    """

    code: Mapping[int, int]
    grids: Mapping[str, int] | None


@dataclass(frozen=True)
class Prices:
    """Costs (K, n_layers, W) of one unit of each layer at each width, limits (K,), and how budgets read (K).

    ``fixed`` (K,) is spent whatever is chosen; a budget's own value is (spent + fixed) · ``unit``.
    """

    keys: tuple[str, ...]
    costs: Floats
    limits: Floats
    fixed: Floats
    unit: Floats

    def readable(self, index: int, spent: float) -> float:
        """Return spending ``spent`` of budget ``index`` in the budget's own unit, rounded up to 6 digits."""
        value = float((spent + self.fixed[index]) * self.unit[index])
        digits = 6 - math.ceil(math.log10(value)) if value > 0 else 6
        return float(math.ceil(value * 10**digits - 1e-9) / 10**digits)


def first_reserve(
    widths: Sequence[int],
    held: Mapping[str, int],
    info: ModelInfo,
    granularity: Granularity,
    scheme: Scheme = "symmetric",
) -> Reserve:
    """Return a reserve that holds for every allocation: codes of one length, every scale that could be needed."""
    symbols = sorted({*widths, *held.values()})
    length = math.ceil(math.log2(len(symbols))) if len(symbols) > 1 else 0
    grids = None
    if granularity == "per_param":
        every = sum(grid_bits(width, scheme) for width in widths)
        grids = {name: shape[0] * every for name, shape in info.shapes.items() if name not in held}
    return Reserve(dict.fromkeys(symbols, length), grids)


def reserve_of(bits: BitMap, widths: Sequence[int]) -> Reserve:
    """Return what the allocation ``bits`` itself needs; every width of ``widths`` keeps a code, used or not."""
    counts = dict.fromkeys(widths, 1)
    grids: dict[str, int] = {}
    for name, layer in bits.layers.items():
        for width, number in bits.counts(name).items():
            counts[width] = counts.get(width, 0) + number
        if bits.granularity == "per_param":
            rows = layer.reshape(len(layer), -1)
            each = {width: grid_bits(width, bits.scheme) for width in bits.counts(name)}
            grids[name] = sum(size * int((rows == width).any(axis=1).sum()) for width, size in each.items())
    return Reserve(huffman_lengths(counts), grids or None)


def prices(
    budget: BudgetSection,
    info: ModelInfo,
    *,
    granularity: Granularity,
    widths: Sequence[int],
    held: Mapping[str, int],
    reserve: Reserve,
    scheme: Scheme = "symmetric",
) -> Prices:
    """Return costs and limits of every budget that is given; layers are those not in ``held``, in model order."""
    free = [name for name in info.shapes if name not in held]
    numbers = {name: math.prod(unit_shape(granularity, shape)) for name, shape in info.shapes.items()}
    model = _Model(info, free, numbers, np.array(widths), held, reserve, scheme)
    makers = {"avg_bits": _average, "size_mb": _packed, "gbops": _operations}
    rows = [
        (key, *maker(min(float(getattr(budget, key)), MOST), model))
        for key, maker in makers.items()
        if getattr(budget, key) is not None
    ]
    keys, costs, limits, fixed, unit = zip(*rows, strict=True)
    return Prices(keys, np.stack(costs), np.array(limits), np.array(fixed), np.array(unit))


MOST = 1e15
"""Megabytes or giga bit-operations beyond which a limit is none, so that arithmetic with it stays finite."""


def whole_bytes(megabytes: float) -> int:
    """Return the whole bytes in ``megabytes`` as written: 1.001 holds 1001000, though 1.001 · 1e6 < 1001000.

    >>> whole_bytes(1.001)
    1001000
    """
    return math.floor(Fraction(repr(min(megabytes, MOST))) * int(MEGABYTE))


_Row = tuple[Floats, float, float, float]
_Widths = npt.NDArray[np.int_]


@dataclass(frozen=True)
class _Model:
    """What costs are counted from: ``free`` layers, ``numbers`` of units by layer, ``held`` layer → width."""

    info: ModelInfo
    free: Sequence[str]
    numbers: Mapping[str, int]
    widths: _Widths
    held: Mapping[str, int]
    reserve: Reserve
    scheme: Scheme


def _table(rows: Sequence[npt.ArrayLike], widths: _Widths) -> Floats:
    """Return rows of costs as (n_layers, W), also without any."""
    return np.array(rows, np.float64).reshape(len(rows), len(widths))


def _average(limit: float, model: _Model) -> _Row:
    """Bits of weights; the limit is the average times the number of weights."""
    sizes = {name: math.prod(shape) for name, shape in model.info.shapes.items()}
    costs = _table([sizes[name] // model.numbers[name] * model.widths for name in model.free], model.widths)
    fixed = sum(sizes[name] * width for name, width in model.held.items())
    total = sum(sizes.values())
    return costs, math.floor(Fraction(repr(limit)) * total) - fixed, fixed, 1 / total


def _packed(limit: float, model: _Model) -> _Row:
    """Bits of the packed file, see ``fairquant.cost.size``."""
    paid = model.reserve.grids is None  # unit by unit
    own = np.array([grid_bits(width, model.scheme) if paid else 0 for width in model.widths.tolist()])
    code = np.array([model.reserve.code[width] for width in model.widths.tolist()])
    sizes = {name: math.prod(shape) // model.numbers[name] for name, shape in model.info.shapes.items()}
    costs = _table([sizes[name] * model.widths + own + code for name in model.free], model.widths)
    costs = np.maximum.accumulate(costs, axis=1)  # a rare width's long code must not cost more than the next width
    fixed = 8 * FLOAT_BYTES * model.info.rest + 8 * TABLE_BYTES * len(model.reserve.code)
    fixed += 8 * len(model.info.shapes) + 8  # each layer's weights, and the map, end on a whole byte
    fixed += 8 * len(model.info.shapes) * (model.scheme != "symmetric")  # and so do each layer's zero points
    for name, width in model.held.items():
        scales = model.info.shapes[name][0] if model.numbers[name] > 1 else 1
        fixed += sizes[name] * model.numbers[name] * width + model.numbers[name] * model.reserve.code[width]
        fixed += grid_bits(width, model.scheme) * scales
    fixed += sum((model.reserve.grids or {}).get(name, 0) for name in model.free)
    return costs, 8 * whole_bytes(limit) - fixed, fixed, 1 / (8 * MEGABYTE)


def _operations(limit: float, model: _Model) -> _Row:
    """Multiply-accumulates times weight bits; activations count with 32 bits, see ``fairquant.cost.bops``."""
    costs = _table([model.info.macs[name] / model.numbers[name] * model.widths for name in model.free], model.widths)
    fixed = float(sum(model.info.macs[name] * width for name, width in model.held.items()))
    return costs, float(Fraction(repr(limit)) * 10**9 / ACTIVATION_BITS) - fixed, fixed, ACTIVATION_BITS / 1e9
