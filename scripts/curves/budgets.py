"""What "B bits per weight" means to each family of methods, so that all of them spend the same real bytes.

The budget B stands for the packed bytes of uniform B-bit quantization with a step size per channel:

    limit(B) = Σ_layers ⌈n·B/8⌉ + 4·channels + 2 + 4·rest

(weights, fp32 step sizes, one entry in the width table, everything else in fp32: ``fairquant.cost.size``). B need not
be whole. Uniform quantization exists at whole B alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from fairquant.allocate.info import ModelInfo
from fairquant.cost.size import FLOAT_BYTES, MEGABYTE, TABLE_BYTES
from fairquant.errors import UserError

Settings = Mapping[str, Any]

MIDDLE = Fraction(2, 5)
"""Share of parameters at the middle width of every ladder, as published (2/4/8 at .2/.4/.4)."""

LADDERS: tuple[tuple[Fraction, bool, tuple[int, int, int]], ...] = (
    (Fraction(1), True, (0, 1, 2)),
    (Fraction(2), False, (0, 1, 4)),
    (Fraction(3), False, (1, 2, 4)),
    (Fraction(32, 5), True, (2, 4, 8)),
    (Fraction(64, 5), True, (4, 8, 16)),
)
"""Up to which budget (itself included, or not) which widths are mixed; the first that fits is taken."""

LOWEST, HIGHEST = Fraction(2, 5), Fraction(64, 5)
"""Averages the ladders reach: .4·1 of 0/1/2, and .4·8 + .6·16 of 4/8/16."""


def exact(budget: float) -> Fraction:
    """Return ``budget`` as written: 2.2 is 11/5. Raises ``UserError`` outside what the ladders reach."""
    value = Fraction(repr(float(budget))) if math.isfinite(budget) else Fraction(-1)
    if not LOWEST <= value <= HIGHEST:
        raise UserError(
            f"--budgets: got {budget:g}; allowed: bits per weight from {float(LOWEST):g} to {float(HIGHEST):g}"
        )
    return value


def ladder(budget: float) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Return three widths and their shares of parameters, whose average is ``budget``; the middle share is .4.

    >>> ladder(4), ladder(1.5)
    (((2, 4, 8), (0.4, 0.4, 0.2)), ((0, 1, 4), (0.325, 0.4, 0.275)))
    """
    asked = exact(budget)
    low, middle, high = next(w for top, included, w in LADDERS if asked < top or (included and asked == top))
    outer = 1 - MIDDLE
    upper = (asked - MIDDLE * middle - outer * low) / (high - low)
    return (low, middle, high), (float(outer - upper), float(MIDDLE), float(upper))


def byte_limit(info: ModelInfo, budget: float) -> int:
    """Return the packed bytes of uniform quantization at ``budget`` bits, per channel; see the module's formula."""
    asked = exact(budget)
    weights = sum(math.ceil(math.prod(shape) * asked / 8) for shape in info.shapes.values())
    scales = FLOAT_BYTES * sum(shape[0] for shape in info.shapes.values())
    return weights + scales + TABLE_BYTES + FLOAT_BYTES * info.rest


def uniform(info: ModelInfo, budget: float) -> Settings | None:
    """Return one width for all; None for a budget that is not whole."""
    asked = exact(budget)
    return {"assign.uniform_bits": int(asked)} if asked.denominator == 1 else None


def levels(info: ModelInfo, budget: float) -> Settings:
    """Return the widths and shares of the ladder for ``budget``."""
    widths, shares = ladder(budget)
    return {"assign.bits": list(widths), "assign.levels": list(shares)}


def packed(info: ModelInfo, budget: float) -> Settings:
    """Return the byte limit as the only budget."""
    return {
        "budget.avg_bits": None,
        "budget.size_mb": byte_limit(info, budget) / MEGABYTE,
        "budget.gbops": None,
    }
