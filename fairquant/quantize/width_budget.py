"""From continuous widths to whole ones whose average, by parameter, meets a target from below."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fairquant.errors import UserError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def round_to_budget(widths: Floats, sizes: Ints, *, target: float, bit_min: int, bit_max: int) -> Ints:
    """Round ``widths`` after one common shift τ, the largest for which the average by parameter is ≤ ``target``.

    Equal widths reach the next whole number at the same τ, and a unit may be larger than what is left of the budget:
    then units are raised one by one, in order, and one that does not fit is passed over. So the average misses the
    target by less than the smallest unit that could still be raised.

    Args:
        widths: continuous widths (U,).
        sizes: parameters of each unit (U,).
        target: average bits by parameter, at least ``bit_min``.
        bit_min: smallest width allowed.
        bit_max: largest width allowed.

    Raises ``UserError`` for a target below ``bit_min``.

    >>> round_to_budget(np.array([2.0, 4.4, 6.0]), np.array([1, 1, 2]), target=4.5, bit_min=2, bit_max=8).tolist()
    [2, 4, 6]
    >>> round_to_budget(np.array([4.0, 4.0, 4.0]), np.array([1, 1, 1]), target=4.4, bit_min=2, bit_max=8).tolist()
    [5, 4, 4]
    """
    if target < bit_min:
        raise UserError(f"target_bits: got {target:g}; allowed: at least bit_min {bit_min}")
    left = math.floor(target * int(sizes.sum()) + 1e-6) - bit_min * int(sizes.sum())
    steps = np.arange(bit_min + 1, bit_max + 1)
    shift = (steps[None, :] - 0.5 - widths[:, None]).ravel()  # where unit u reaches width k: τ = k − ½ − b_u
    order = np.argsort(shift, kind="stable") // max(len(steps), 1)
    spent = np.cumsum(sizes[order])
    fitting = int(np.searchsorted(spent, left, side="right"))
    raised = np.bincount(order[:fitting], minlength=len(widths))
    left -= int(spent[fitting - 1]) if fitting else 0
    passed_over = np.zeros(len(widths), dtype=bool)
    for unit in order[fitting:].tolist():
        if sizes[unit] > left:
            passed_over[unit] = True
        elif not passed_over[unit]:
            raised[unit] += 1
            left -= int(sizes[unit])
    return bit_min + raised
