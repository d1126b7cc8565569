"""The one fake quantization, used by static quantization, quantization-aware training and evaluation.

A weight w at b bits with step size Δ becomes Δ · clamp(round(w / Δ), −M, M), M = 2^(b−1) − 1, ties to even. In the
asymmetric scheme it becomes Δ · clamp(round(w / Δ), −z, L − z), L = 2^b − 1, with a zero point z in 0…L (Jacob et al.
2018, arXiv 1712.05877, equation 1: the stored code 0…L is that plus z), so that 0 is on every grid. In both, 0 bits
prune; 1 bit is Δ·sign(w) with sign(0) = +1 (Δ is the mean of |w|); 32 bits are the weight itself, bit for bit.

Gradients are straight-through (Bengio et al. 2013, arXiv 1308.3432): 1 inside the clipping range |w| ≤ M·Δ, 0 outside;
pruned weights get 0, 32-bit weights 1, and so do 1-bit weights, which nothing clips (DoReFa-Net, arXiv 1606.06160).
An asymmetric grid's range reaches half a step beyond its ends, (−z − ½)·Δ ≤ w ≤ (L − z + ½)·Δ: rounding z shifts the
grid by up to that much against the range it was made for, and what is rounded by no more than that is not clipped.
The step size's gradient is that of LSQ (Esser et al. 2020, arXiv 1902.08153): round(w/Δ) − w/Δ inside, ±M outside.

Widths may differ from weight to weight: they enter as tensors, never as a Python loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fairquant.allocate.bitmap import Scheme
from fairquant.errors import UserError
from fairquant.quantize.rows import Workspace, as_rows, blocks, from_rows, inner_order, part

PRUNED, SIGN, UNTOUCHED = 0, 1, 32
NO_GRID = 0.5
"""Stands for M where a width has no grid."""


class Grid(NamedTuple):
    """Step sizes Δ, all positive, and with them the zero points z as whole floats; None where grids are symmetric."""

    delta: Tensor
    zero: Tensor | None = None


GridOf = Callable[[Tensor, slice], Grid]
"""(weights of a block (r, n), the block) → their grids, each part (r | 1, 1 | n)."""


@dataclass(frozen=True)
class Widths:
    """Bit-widths made ready for arithmetic, shape (rows | 1, n | 1); a mask no weight needs is None."""

    largest: Tensor
    """M = 2^(b−1) − 1 as float, or L = 2^b − 1 with zero points; 0.5, which no other width has, where b is 0, 1, 32."""
    pruned: Tensor | None
    sign: Tensor | None
    untouched: Tensor | None
    all_untouched: bool
    scheme: Scheme = "symmetric"

    def block(self, rows: slice) -> Widths:
        """Return the widths of a block of rows."""
        pruned, sign, untouched = (
            None if mask is None else part(mask, rows) for mask in (self.pruned, self.sign, self.untouched)
        )
        return Widths(part(self.largest, rows), pruned, sign, untouched, self.all_untouched, self.scheme)

    def filled(self, values: Tensor, **special: float) -> Tensor:
        """Return ``values``, of the shape of ``largest`` or a weight's, with others at the masks named."""
        for name, value in special.items():
            mask = getattr(self, name)
            if mask is not None:
                values = values.masked_fill(mask, value)
        return values


def widths_present(bits: Tensor) -> tuple[int, ...]:
    """Return the widths that occur in ``bits``, ascending.

    >>> widths_present(torch.tensor([8, 2, 8]))
    (2, 8)
    """
    found = torch.bincount(bits.reshape(-1).long())
    return tuple(int(width) for width in found.nonzero())


def prepare_widths(bits: Tensor, dtype: torch.dtype = torch.float32, *, scheme: Scheme = "symmetric") -> Widths:
    """Turn integer ``bits`` (0, 1, 2…16 or 32) of shape (rows | 1, n | 1) into ``Widths``.

    Raises ``UserError`` for any other width.

    >>> prepare_widths(torch.tensor([[2], [8], [32]])).largest.flatten().tolist()
    [1.0, 127.0, 0.5]
    >>> prepare_widths(torch.tensor([[2], [8], [32]]), scheme="asymmetric").largest.flatten().tolist()
    [3.0, 255.0, 0.5]
    """
    present = widths_present(bits)
    wrong = [width for width in present if not (0 <= width <= 16 or width == UNTOUCHED)]
    if wrong:
        raise UserError(f"bit-width: got {wrong[0]}; allowed: 0 to 16, or 32")
    special = (bits == PRUNED) | (bits == SIGN) | (bits == UNTOUCHED)
    signed = 1 if scheme == "symmetric" else 0
    powers = torch.pow(2.0, bits.to(torch.float64) - signed) - 1
    return Widths(
        largest=torch.where(special, NO_GRID, powers).to(dtype),
        pruned=bits == PRUNED if PRUNED in present else None,
        sign=bits == SIGN if SIGN in present else None,
        untouched=bits == UNTOUCHED if UNTOUCHED in present else None,
        all_untouched=present == (UNTOUCHED,),
        scheme=scheme,
    )


def round_to_grid(weight: Tensor, grid: Grid, widths: Widths, out: Tensor, *, clips: bool = True) -> None:
    """Write the fake-quantized ``weight`` (r, n) into ``out``; ``clips=False`` promises that all of it is inside."""
    delta, zero = grid
    torch.div(weight, delta, out=out)
    out.round_()
    if zero is not None:  # always: an end may lie half a step outside the grid, and a tie be rounded to beyond it
        clip_(out, -zero, widths.largest - zero)
    elif clips:
        clip_(out, -widths.largest, widths.largest)
    out.mul_(widths.filled(delta, pruned=0.0, sign=0.0))
    if widths.sign is not None:
        _add_signs(out, weight, torch.where(widths.sign, delta, 0.0))
    if widths.untouched is not None:
        torch.where(widths.untouched, weight, out, out=out)


def clip_(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clamp ``values`` between tensors, in place; on a CPU ``torch.clamp`` takes ten times as long as these two."""
    if not values.is_cpu:
        return torch.clamp(values, min=low, max=high, out=values)
    torch.minimum(values, high, out=values)
    return torch.maximum(values, low, out=values)


def _add_signs(values: Tensor, weight: Tensor, size: Tensor) -> None:
    """Add ±``size`` with the sign of ``weight``, + for 0, exactly where ``values`` is 0 or ``size`` is."""
    values.addcmul_(torch.ge(weight, 0, out=torch.empty_like(values)), 2 * size).sub_(size)


@dataclass(frozen=True)
class Plan:
    """All a fake quantization needs besides the weight."""

    widths: Widths
    grid_of: GridOf
    clips: bool = True
    add_step_gradient: Callable[[Tensor, Tensor, slice], None] | None = None
    """(gradient of the step sizes used in a block, the gradient to add to, the block); None: Δ is not learned."""
    workspace: Workspace | None = None
    """Where the result may go; None: fresh memory."""


class _FakeQuantize(torch.autograd.Function):
    """Block by block; keeps nothing for the backward pass but references to the weight and its step sizes."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor | None, plan: Plan) -> Tensor:
        """Return the fake-quantized weight, laid out in memory as ``weight`` is."""
        ctx.plan = plan
        ctx.free = not plan.clips and plan.widths.pruned is None and step is None
        if not ctx.free:
            ctx.save_for_backward(weight, *([] if step is None else [step]))
        order = inner_order(weight)
        rows = as_rows(weight, order)
        out = torch.empty_like(rows) if plan.workspace is None else plan.workspace.take(rows)
        for block in blocks(*rows.shape, on_cpu=weight.is_cpu):
            w = rows[block]
            round_to_grid(w, plan.grid_of(w, block), plan.widths.block(block), out[block], clips=plan.clips)
        return from_rows(out, weight, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Return the straight-through gradient of the weight and the LSQ gradient of the step sizes."""
        if ctx.free:
            return gradient, None, None
        weight, *rest = ctx.saved_tensors
        plan: Plan = ctx.plan
        order = inner_order(weight)
        rows, incoming = as_rows(weight, order), as_rows(gradient, order)
        passed = torch.empty_like(rows)
        step_gradient = torch.zeros_like(rest[0]) if rest else None
        for block in blocks(*rows.shape, on_cpu=weight.is_cpu):
            widths, w, g = plan.widths.block(block), rows[block], incoming[block]
            if not plan.clips and step_gradient is None:
                torch.mul(g, widths.filled(torch.ones_like(widths.largest), pruned=0.0), out=passed[block])
                continue
            grid = plan.grid_of(w, block)
            torch.mul(g, _passes(w, grid, widths), out=passed[block])
            if step_gradient is not None and plan.add_step_gradient is not None:
                plan.add_step_gradient(_step_derivative(w, grid.delta, widths).mul_(g), step_gradient, block)
        return from_rows(passed, weight, order), step_gradient, None


def _passes(weight: Tensor, grid: Grid, widths: Widths) -> Tensor:
    """Return 1 where the gradient passes straight through, else 0; a mask of floats, ten times faster on a CPU."""
    if grid.zero is None:
        reach = widths.largest * grid.delta
        return weight.abs().le_(widths.filled(reach, sign=math.inf, untouched=math.inf, pruned=-math.inf))
    codes = weight / grid.delta
    low = widths.filled(-0.5 - grid.zero, sign=-math.inf, untouched=-math.inf)
    high = widths.filled(widths.largest - grid.zero + 0.5, sign=math.inf, untouched=math.inf, pruned=-math.inf)
    return torch.ge(codes, low, out=torch.empty_like(codes)).mul_(codes.le_(high))


FARTHEST = 1e30
"""Steps from zero beyond which a weight is simply far outside its grid."""


def _step_derivative(weight: Tensor, delta: Tensor, widths: Widths) -> Tensor:
    """Return ∂ŵ/∂Δ weight by weight of symmetric grids (LSQ, equation 3; 1 bit: the sign; pruned and untouched: 0)."""
    v = (weight / delta).clamp_(-FARTHEST, FARTHEST)  # finite where a learned step all but vanished
    top = widths.largest.floor()  # 0 where there is no grid
    derivative = clip_(v.round(), -top, top).sub_(v.abs().le_(top).mul_(v))
    if widths.sign is not None:
        _add_signs(derivative, weight, widths.sign.to(derivative.dtype))
    return derivative


def apply_plan(weight: Tensor, plan: Plan, step: Tensor | None = None) -> Tensor:
    """Fake-quantize ``weight`` (out, …) by ``plan``; ``step`` is the learned parameter its step sizes come from."""
    if plan.widths.all_untouched:
        return weight
    result: Tensor = _FakeQuantize.apply(weight, step, plan)
    return result


def fake_quantize(weight: Tensor, bits: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """Fake-quantize ``weight`` (out, …) with given step sizes, and zero points where grids are asymmetric.

    Args:
        weight: any floating tensor with at least one dimension.
        bits: integer widths, each 0…16 or 32, broadcastable to ``weight``.
        scale: positive step sizes Δ, broadcastable to ``weight``; not differentiated here.
        zero_point: whole numbers z in [0, 2^b − 1], broadcastable to ``weight``; None: symmetric grids.

    Returns:
        A tensor like ``weight``, differentiable with respect to it.

    >>> w = torch.tensor([[0.9, -0.3], [0.9, -0.3]])
    >>> fake_quantize(w, torch.tensor([[2], [3]]), torch.tensor([[0.9], [0.3]])).tolist()
    [[0.8999999761581421, -0.0], [0.9000000357627869, -0.30000001192092896]]
    >>> fake_quantize(torch.tensor([[1.4, -0.6, 0.2]]), torch.tensor(2), torch.tensor(0.5), torch.tensor(1)).tolist()
    [[1.0, -0.5, 0.0]]
    """
    order = inner_order(weight)
    shaped_bits, shaped_scale = (_broadcast_rows(t, weight, order) for t in (bits, scale))
    if zero_point is None:
        widths = prepare_widths(shaped_bits, weight.dtype)
        return apply_plan(weight, Plan(widths, lambda _, block: Grid(part(shaped_scale, block))))
    shaped_zero = _broadcast_rows(zero_point, weight, order).to(weight.dtype)
    widths = prepare_widths(shaped_bits, weight.dtype, scheme="asymmetric")
    return apply_plan(weight, Plan(widths, lambda _, block: Grid(part(shaped_scale, block), part(shaped_zero, block))))


def _broadcast_rows(tensor: Tensor, weight: Tensor, order: tuple[int, ...]) -> Tensor:
    """Bring a tensor broadcastable to ``weight`` to shape (out | 1, n | 1)."""
    full = tensor.reshape((1,) * (weight.dim() - tensor.dim()) + tuple(tensor.shape))
    if full[:1].numel() == 1:
        return full.reshape(-1, 1)
    return as_rows(full.expand(weight.shape), order)
