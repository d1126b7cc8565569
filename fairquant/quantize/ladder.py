"""Grids of rows of weights at several bit-widths, and the rows quantized with them.

An allocator compares what each row (a channel, or a whole layer) would lose at each width before widths are assigned.
Its step sizes are those a ``WeightQuantizer`` measures on a layer whose rows all have that width: the same plug-in, the
same float32 numbers, block by block; a plug-in that can takes several widths at once (``ladder``).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from fairquant import plugins
from fairquant.errors import UserError
from fairquant.quantize.fake_quant import PRUNED, SIGN, UNTOUCHED, Grid, prepare_widths, round_to_grid
from fairquant.quantize.layout import measure
from fairquant.quantize.rows import blocks


@torch.no_grad()
def step_sizes(
    rows: Tensor, widths: Sequence[int], *, method: str, percentile: float, importance: Tensor | None = None
) -> Tensor:
    """Measure the step sizes of symmetric grids for ``rows`` at each of ``widths``.

    Args:
        rows: (r, n), a row per channel or one row for a layer, as ``rows.as_rows`` gives them (sums of a row depend,
            in their last place, on its order).
        widths: bit-widths, each 0 to 16 or 32.
        method: name of the step-size method (a file of ``quantize/scales``).
        percentile: of |w|, used by ``percentile``.
        importance: (r, n), finite and not negative, for methods that weigh by it; others do as without.

    Returns:
        (r, W), in the order of ``widths``; 1 at 0 and 32 bits.

    Raises ``UserError`` for an unknown method, another width, or importance that is negative, not finite or misshapen.

    >>> step_sizes(torch.tensor([[0.5, -2.0]]), [0, 1, 2, 3], method="absmax", percentile=100).tolist()
    [[1.0, 1.25, 2.0, 0.6666666865348816]]
    """
    plugin = plugins.load("scale", method)
    prepare_widths(torch.tensor([*widths, UNTOUCHED]))  # raises for a width that there is not
    if importance is not None:
        _check_importance(importance, rows)
    parts = [
        _of_block(plugin, rows[block], widths, percentile, None if importance is None else importance[block])
        for block in blocks(*rows.shape, on_cpu=rows.is_cpu)
    ]
    return torch.cat(parts)


def _of_block(
    plugin: ModuleType, rows: Tensor, widths: Sequence[int], percentile: float, importance: Tensor | None
) -> Tensor:
    """Return the step sizes (r, W) of a block of rows."""
    grids = tuple(sorted({width for width in widths if width not in (PRUNED, SIGN, UNTOUCHED)}))
    found: dict[int, Tensor] = {}
    if grids and hasattr(plugin, "ladder"):
        tops = [2.0 ** (width - 1) - 1 for width in grids]
        table = plugin.ladder(rows, tops, percentile=percentile, importance=importance)
        found |= dict(zip(grids, table.split(1, dim=1), strict=True))
    if importance is not None and hasattr(plugin, "sign_step"):
        found[SIGN] = plugin.sign_step(rows, importance=importance)
    for width in set(widths) - set(found):
        bits = torch.full((len(rows), 1), width, device=rows.device)
        found[width] = measure(plugin, rows, prepare_widths(bits, rows.dtype), percentile).delta
    return torch.cat([found[width] for width in widths], 1) if widths else rows.new_empty(len(rows), 0)


@torch.no_grad()
def asymmetric_grids(rows: Tensor, widths: Sequence[int], *, method: str, percentile: float) -> Grid:
    """Measure the asymmetric grids of ``rows`` at each of ``widths``: step sizes and zero points, (r, W) each.

    Arguments, order and errors are those of ``step_sizes``; zero points are whole floats, 0 at 0, 1 and 32 bits.

    >>> delta, zero = asymmetric_grids(torch.tensor([[1.5, -0.5]]), [1, 2, 3], method="absmax", percentile=100)
    >>> delta.tolist(), zero.tolist()
    ([[1.0, 0.6666666865348816, 0.2857142984867096]], [[0.0, 1.0, 2.0]])
    """
    plugin = plugins.load("scale", method)
    deltas, zeros = torch.zeros(2, len(rows), len(widths), dtype=rows.dtype, device=rows.device)
    for block in blocks(*rows.shape, on_cpu=rows.is_cpu):
        for column, width in enumerate(widths):
            bits = torch.full((len(rows[block]), 1), width, device=rows.device)
            delta, zero = measure(
                plugin, rows[block], prepare_widths(bits, rows.dtype, scheme="asymmetric"), percentile
            )
            deltas[block, column] = delta[:, 0]
            if zero is not None:
                zeros[block, column] = zero[:, 0]
    return Grid(deltas, zeros)


@torch.no_grad()
def quantize_rows(rows: Tensor, width: int, delta: Tensor, zero: Tensor | None = None) -> Tensor:
    """Fake-quantize ``rows`` (r, n) at one width with step sizes ``delta`` (r, 1), and zero points: (r, n).

    The result is that of a ``WeightQuantizer``, bit for bit; at 32 bits it is ``rows`` itself, not a copy.

    >>> quantize_rows(torch.tensor([[0.9, -0.2]]), 3, torch.tensor([[0.25]])).tolist()
    [[0.75, -0.25]]
    """
    if width == UNTOUCHED:
        return rows
    out = torch.empty_like(rows)
    bits = torch.tensor([[width]], device=rows.device)
    widths = prepare_widths(bits, rows.dtype, scheme="symmetric" if zero is None else "asymmetric")
    round_to_grid(rows, Grid(delta, zero), widths, out)
    return out


def _check_importance(importance: Tensor, rows: Tensor) -> None:
    if importance.shape != rows.shape:
        raise UserError(f"importance: got shape {tuple(importance.shape)}; allowed: {tuple(rows.shape)}, the weights'")
    least, most = torch.aminmax(importance) if importance.numel() else (torch.zeros(()), torch.zeros(()))
    if not (float(least) >= 0 and float(most) < float("inf")):
        wrong = float(least) if not float(least) >= 0 else float(most)
        raise UserError(f"importance: got {wrong:g}; allowed: finite numbers of at least 0")
