"""What rounding a unit to each width is predicted to cost each group, and the grids it would have.

With δ_b = Q_b(w) − w, where Q_b uses the grids of ``quantize.scale`` and ``quantize.weight_scheme`` for b bits,

    L_g(u, b) = Σ_{w ∈ u} I_g(w) · h(δ_b(w), w)

in which the importance metric defines I_g · h: ½ F δ² for fisher, |g||δ| for gradient, (g δ)² for grape, ½ |h| δ² for
hawq (``predicted_increase``). Every metric is linear in its map, so h is computed once for all groups and the sums are
small matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fairquant import plugins
from fairquant.allocate.bitmap import Granularity, Scheme
from fairquant.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float32]
Increase = Callable[[Floats, Floats], Floats]
BLOCK = 1 << 20
"""Values of δ held at once, over all widths: 4 MiB of float32."""


@dataclass(frozen=True)
class Rounding:
    """How weights are rounded: the scale method, its percentile, granularity and candidates of widths, the scheme."""

    scale: str
    percentile: float
    granularity: Granularity
    widths: tuple[int, ...]
    scheme: Scheme = "symmetric"

    def rows(self, weight: Floats) -> Floats:
        """Return ``weight`` (out, …) as rows that share a step size: one per channel, or one for the layer."""
        return np.ascontiguousarray(weight.reshape(1 if self.granularity == "per_tensor" else len(weight), -1))


@dataclass(frozen=True)
class LayerLosses:
    """Predicted losses (G, U, W) of one layer's units, and the step sizes (U, W) they were computed with."""

    losses: npt.NDArray[np.float64]
    steps: Floats


def increase_of(metric: str) -> Increase:
    """Return h(δ, w) of the metric: what its map is multiplied by.

    A metric whose map holds w² says nothing about a weight of 0, which 1 bit moves to Δ: h is 0 there, as the map is.
    """
    import torch

    plugin = plugins.load("importance", metric)
    blind = float(plugin.score(torch.ones(1), torch.zeros(1))) == 0

    def increase(delta: Floats, weight: Floats) -> Floats:
        if blind:
            delta = np.where(weight == 0, np.float32(0), delta)
        with np.errstate(over="ignore"):  # (δ/w)² of a weight next to 0, whose map is 0
            effect: Floats = plugin.predicted_increase(np.float32(1), delta, weight)
        finite: Floats = np.minimum(effect, np.finfo(np.float32).max)
        return finite

    return increase


def sensitivity(increase: Increase, importance: Floats, weight: Floats) -> Floats:
    """Return f ≥ 0 per weight such that f · δ² is the metric's idea of the loss: I · h(w, w) / w², 0 where w is 0.

    For fisher this is ½ I, for grape and hawq the derivative part of I alone. It weighs the squared errors of the
    ``weighted`` step sizes.
    """
    square = np.square(weight)
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = np.divide(increase(weight, weight), square, out=np.zeros_like(weight), where=square > 0)
        return np.nan_to_num(importance * ratio, posinf=0.0)


def step_sizes(weight: Floats, rounding: Rounding, sensitivity: Floats | None = None) -> Floats:
    """Return the step size of every row's symmetric grid at every candidate width: (U, W), 1 at 0 and 32 bits."""
    import torch

    from fairquant.quantize import ladder

    rows = torch.from_numpy(rounding.rows(weight))
    weights = None if sensitivity is None else torch.from_numpy(rounding.rows(sensitivity))
    found = ladder.step_sizes(
        rows, rounding.widths, method=rounding.scale, percentile=rounding.percentile, importance=weights
    )
    steps: Floats = found.numpy()
    return steps


def grids(weight: Floats, rounding: Rounding, sensitivity: Floats | None = None) -> tuple[Floats, Floats | None]:
    """Return ``step_sizes``, and the zero points (U, W) with them where grids are asymmetric."""
    if rounding.scheme == "symmetric":
        return step_sizes(weight, rounding, sensitivity), None
    import torch

    from fairquant.quantize.ladder import asymmetric_grids

    delta, zero = asymmetric_grids(
        torch.from_numpy(rounding.rows(weight)), rounding.widths, method=rounding.scale, percentile=rounding.percentile
    )
    return delta.numpy(), None if zero is None else zero.numpy()


def layer_losses(
    weight: Floats, maps: Floats, rounding: Rounding, increase: Increase, steps: Floats, zeros: Floats | None = None
) -> LayerLosses:
    """Return what every unit of a layer is predicted to cost every group at every width.

    Args:
        weight: float32 (out, …).
        maps: importance (G, out, …).
        rounding: per_tensor or per_channel, and the widths.
        increase: h(δ, w) of the metric.
        steps: step sizes (U, W).
        zeros: zero points (U, W) of asymmetric grids.

    Raises ``UserError`` where a prediction is not finite.
    """
    import torch

    rows = rounding.rows(weight)
    units, length = rows.shape
    groups = maps.reshape(len(maps), units, length)
    total = np.zeros((units, len(maps), len(rounding.widths)))
    for part, columns in _blocks(units, length, len(rounding.widths)):
        block = rows[part, columns]
        effect = np.empty((*block.shape, len(rounding.widths)), np.float32)
        for index, delta in enumerate(
            deltas(block, rounding.widths, steps[part], None if zeros is None else zeros[part])
        ):
            effect[:, :, index] = increase(delta, block)
        importance = torch.from_numpy(np.ascontiguousarray(groups[:, part, columns].transpose(1, 0, 2)))
        total[part] += torch.bmm(importance, torch.from_numpy(effect)).numpy()
    if not np.isfinite(total).all():
        raise UserError("predicted loss: got NaN or infinity; allowed: finite importance and weights")
    return LayerLosses(total.transpose(1, 0, 2), steps)


def deltas(rows: Floats, widths: Sequence[int], steps: Floats, zeros: Floats | None = None) -> Iterator[Floats]:
    """Yield Q_b(w) − w of ``rows`` (r, n) for each width, with step sizes (r, W), and zero points of that shape."""
    import torch

    from fairquant.quantize.ladder import quantize_rows

    weight = torch.from_numpy(np.ascontiguousarray(rows))
    for index, width in enumerate(widths):
        column = slice(index, index + 1)
        step = torch.from_numpy(np.ascontiguousarray(steps[:, column]))
        zero = None if zeros is None else torch.from_numpy(np.ascontiguousarray(zeros[:, column]))
        delta: Tensor = quantize_rows(weight, width, step, zero)
        yield (delta - weight).numpy()


def _blocks(units: int, length: int, widths: int) -> Iterator[tuple[slice, slice]]:
    """Cut (units, length) into pieces of about ``BLOCK`` values over all widths."""
    columns = min(length, max(1, BLOCK // widths))
    rows = max(1, BLOCK // (columns * widths))
    for start in range(0, units, rows):
        for left in range(0, length, columns):
            yield slice(start, min(start + rows, units)), slice(left, min(left + columns, length))


def total_by_layer(layers: Mapping[str, LayerLosses], chosen: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Return each layer's predicted loss per group (G,) with width index ``chosen[layer]`` (U,) for every unit."""
    return {
        name: np.array([math.fsum(row) for row in layer.losses[:, np.arange(len(chosen[name])), chosen[name]].tolist()])
        for name, layer in layers.items()
    }
