r"""Learnable bit-widths (BAQ): fake quantization whose gradient reaches the widths and the dead zone.

A unit (out channel, or layer) holds two logits. With the squash s(l) = clip(1.2 σ(l) − 0.1, 0, 1), which attains both
ends at finite logits (the stretched sigmoid of Louizos, Welling & Kingma 2018, arXiv 1712.01312):

    b = b_min + (b_max − b_min) · s(b_logit)      used as b̂ = round(b), straight-through
    M = 2^(b̂−1) − 1                               codes are −M … M
    ρ = 2 · s(d_logit),  d = ρ · Δ                the dead zone |w| < d/2 becomes 0; ρ = 1 is plain rounding
    Δ = (max|w| − d/2) / M = max|w| / (M + ρ/2)   step size (Wørgaard & Selvan 2026, arXiv 2602.23192)
    ŵ = Δ · sign(w) · min(⌈(|w| − d/2) / Δ⌉, M)   cells of width Δ beyond the dead zone

so that a code times one step size is the weight, as in every other quantizer here. With e = ŵ − w the error and g the
gradient of the loss with respect to ŵ, the straight-through estimates are

    ∂L/∂w = g      ∂L/∂b = −(Σ g·e) · ln 2 · (M + 1) / (M + ρ/2)
    ∂L/∂ρ = −(Σ g·sign w) · Δ/2 − (Σ g·e) / (2 (M + ρ/2))

Σ g·e is the derivative of the loss along the unit's own quantization error: to second order g·e = g(w)·e + eᵀHe, what
the error costs. A unit whose error costs the task or a group much asks for bits; one whose error costs nothing lets
them go (``train.width_control`` says how that is told from the noise of batches).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fairquant.allocate.bitmap import Granularity
from fairquant.errors import UserError
from fairquant.quantize.rows import Workspace, as_rows, blocks, from_rows, inner_order, part
from fairquant.quantize.scales._slots import row_max

STRETCH = 0.1
"""How far the squash reaches beyond 0 and 1 before it is clipped."""
ENDS = (math.log(STRETCH / (1 + STRETCH)), math.log((1 + STRETCH) / STRETCH))
"""The logits at which the squash is exactly 0 and 1."""
INWARD = 1 - 2.0**-19
"""The largest weight lies half a step beyond code M: a hair less, so that it rounds to M and nothing is clipped."""
LARGEST_DEAD_ZONE = 2.0
"""In steps; half of it is plain rounding."""


def squash(logit: Tensor) -> Tensor:
    """Return s(logit) in [0, 1]; the gradient stays alive at both ends, so that a unit can come back from there.

    >>> [round(share, 6) for share in squash(unsquash(torch.tensor([0.0, 0.25, 1.0]))).tolist()]
    [0.0, 0.25, 1.0]
    """
    stretched = (1 + 2 * STRETCH) * torch.sigmoid(logit) - STRETCH
    return stretched + (stretched.clamp(0.0, 1.0) - stretched).detach()


def squash_slope(logit: Tensor) -> Tensor:
    """Return ds/dlogit, the gradient that ``squash`` passes on."""
    sigmoid = torch.sigmoid(logit)
    return (1 + 2 * STRETCH) * sigmoid * (1 - sigmoid)


def unsquash(share: Tensor) -> Tensor:
    """Return the logit at which ``squash`` is ``share`` in [0, 1]; finite at both ends."""
    return torch.logit((share + STRETCH) / (1 + 2 * STRETCH))


class UnitTerms(NamedTuple):
    """What a step needs of the logits of units, each (units, 1); units of several layers may stand in one column."""

    span: Tensor
    """M + ρ/2, the largest magnitude in steps: Δ = max|w| / span."""
    shift: Tensor
    """(ρ − 1) / 2, what a magnitude in steps loses before it is rounded."""
    bits_error: Tensor
    """∂L/∂b_logit by Σ g·e: −ln 2 · (M + 1) / span · ∂b/∂b_logit."""
    dead_error: Tensor
    """∂L/∂d_logit by Σ g·e: −1 / (2 span) · ∂ρ/∂d_logit."""
    dead_sign: Tensor
    """∂L/∂d_logit by Δ Σ g·sign w: −1/2 · ∂ρ/∂d_logit."""


@torch.no_grad()
def unit_terms(b_logit: Tensor, d_logit: Tensor, bit_min: int, bit_max: int) -> UnitTerms:
    """Return the terms of units with these logits (units,), in about twenty small calls for any number of units."""
    b_logit, d_logit = b_logit.view(-1, 1), d_logit.view(-1, 1)
    half = squash(d_logit) * (LARGEST_DEAD_ZONE / 2)
    codes = torch.exp2((bit_min + (bit_max - bit_min) * squash(b_logit)).round() - 1)
    span = codes - 1 + half
    bits_error = squash_slope(b_logit).mul_(codes).div_(span).mul_((bit_min - bit_max) * math.log(2))
    dead_sign = squash_slope(d_logit).mul_(-LARGEST_DEAD_ZONE / 2)
    return UnitTerms(span, half.sub_(0.5), bits_error, dead_sign / span, dead_sign)


class _LearnedQuantize(torch.autograd.Function):
    """Block by block, like ``fake_quant``; keeps the weight and its result for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, b_logit: Tensor, d_logit: Tensor, terms: UnitTerms, workspace: Workspace | None
    ) -> Tensor:
        """Return ŵ; ``terms`` are those of the logits, (out | 1,)."""
        order = inner_order(weight)
        rows = as_rows(weight, order)
        delta = _step_sizes(rows, terms.span)
        out = torch.empty_like(rows) if workspace is None else workspace.take(rows)
        inverse = INWARD / delta
        for block in blocks(*rows.shape, on_cpu=weight.is_cpu):
            o = torch.mul(rows[block], part(inverse, block), out=out[block])
            o.addcmul_(torch.sign(o), part(terms.shift, block), value=-1)
            o.round_().mul_(part(delta, block))
        result = from_rows(out, weight, order)
        ctx.save_for_backward(weight, result, delta, terms.bits_error, terms.dead_error, terms.dead_sign)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        """Return the straight-through gradients of the weight and of both logits."""
        weight, result, delta, bits_error, dead_error, dead_sign = ctx.saved_tensors
        order = inner_order(weight)
        g, w, q = (as_rows(tensor, order) for tensor in (gradient, weight, result))
        along_error, along_sign = w.new_empty(len(w), 1), w.new_empty(len(w), 1)
        for block in blocks(*w.shape, on_cpu=weight.is_cpu):
            error = q[block] - w[block]
            torch.sum(error.mul_(g[block]), 1, keepdim=True, out=along_error[block])
            torch.sum(torch.sign(w[block], out=error).mul_(g[block]), 1, keepdim=True, out=along_sign[block])
        if len(delta) == 1:
            along_error, along_sign = along_error.sum(0, keepdim=True), along_sign.sum(0, keepdim=True)
        of_bits = (along_error * bits_error).view(-1) if ctx.needs_input_grad[1] else None
        of_dead = torch.addcmul(along_error * dead_error, along_sign.mul_(delta), dead_sign).view(-1)
        return gradient, of_bits, of_dead, None, None


def _step_sizes(rows: Tensor, span: Tensor) -> Tensor:
    """Return Δ, (out | 1, 1), for ``rows`` (out, n)."""
    peak = row_max(rows)
    if len(span) == 1:
        peak = peak.amax(0, keepdim=True)
    return (peak / span).clamp_min_(torch.finfo(rows.dtype).tiny)


class LearnedWidthQuantizer(nn.Module):
    """Parametrization of a weight whose unit widths and dead zones are trained.

    Attributes:
        b_logit: (out | 1,), behind the width b in [bit_min, bit_max].
        d_logit: (out | 1,), behind the dead zone ρ in [0, 2] steps.
    """

    def __init__(self, weight: Tensor, bits: Tensor, *, bit_min: int, bit_max: int) -> None:
        """Start exactly at ``bits`` (of shape () or (out,), each in [bit_min, bit_max]) and at plain rounding.

        Raises ``UserError`` for a width outside the range.
        """
        super().__init__()
        self.bit_min, self.bit_max = bit_min, bit_max
        self._per_tensor = bits.dim() == 0
        start = bits.reshape(-1).to(device=weight.device, dtype=torch.float64)
        outside = start[(start < bit_min) | (start > bit_max)]
        if len(outside):
            raise UserError(f"bit-width: got {int(outside[0])}; allowed: from bit_min {bit_min} to bit_max {bit_max}")
        self.b_logit = nn.Parameter(self._logit(start).to(weight.dtype))
        self.d_logit = nn.Parameter(torch.zeros_like(self.b_logit))
        self._workspace = Workspace()
        self._held: tuple[UnitTerms, tuple[int, int]] | None = None

    @property
    def granularity(self) -> Granularity:
        """The granularity of the widths: per_tensor or per_channel."""
        return "per_tensor" if self._per_tensor else "per_channel"

    @property
    def widths(self) -> Tensor:
        """The continuous widths b, (out | 1,), differentiable."""
        return self.bit_min + (self.bit_max - self.bit_min) * squash(self.b_logit)

    @property
    def dead_zone(self) -> Tensor:
        """The dead zone ρ in steps, (out | 1,), differentiable."""
        return LARGEST_DEAD_ZONE * squash(self.d_logit)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the fake-quantized ``weight`` (out, …)."""
        workspace = self._workspace if self.training and torch.is_grad_enabled() else None
        result: Tensor = _LearnedQuantize.apply(weight, self.b_logit, self.d_logit, self.terms(), workspace)
        return result

    @torch.no_grad()
    def set_widths(self, bits: Tensor) -> None:
        """Put the logits where the widths are exactly ``bits`` (out | 1,)."""
        self.b_logit.copy_(self._logit(bits.to(torch.float64)))

    def terms(self) -> UnitTerms:
        """Return the terms of the logits: those held, as long as both logits are what they were made of."""
        if self._held is not None and self._held[1] == self._versions():
            return self._held[0]
        return unit_terms(self.b_logit, self.d_logit, self.bit_min, self.bit_max)

    def hold(self, terms: UnitTerms) -> None:
        """Use ``terms``, made of these logits for all layers at once, until a logit changes."""
        self._held = terms, self._versions()

    def _versions(self) -> tuple[int, int]:
        return self.b_logit._version, self.d_logit._version

    @torch.no_grad()
    def bits(self) -> Tensor:
        """Return the widths in use, uint8 of shape () or (out,)."""
        hard = self.widths.round().to(torch.uint8)
        return hard[0] if self._per_tensor else hard

    @torch.no_grad()
    def table(self, weight: Tensor) -> Tensor:
        """Return the step sizes Δ in use for ``weight``: (out | 1, 1)."""
        return _step_sizes(as_rows(weight, inner_order(weight)), self.terms().span)

    def _logit(self, bits: Tensor) -> Tensor:
        span = self.bit_max - self.bit_min
        return unsquash((bits - self.bit_min) / span if span else torch.zeros_like(bits))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out workspace and held terms: a copy makes its own."""
        return self.__dict__ | {"_workspace": Workspace(), "_held": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LearnedWidthQuantizer:
        """Move to a device or change the type, which no version tells of."""
        self._held = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        """Say how the weight is quantized."""
        return f"bits in [{self.bit_min}, {self.bit_max}], learned"


def learned_quantizers(model: nn.Module) -> dict[str, LearnedWidthQuantizer]:
    """Return the learned quantizers by layer name, in module order."""
    return dict(_named(model))


def _named(model: nn.Module) -> Iterator[tuple[str, LearnedWidthQuantizer]]:
    for name, module in model.named_modules():
        if isinstance(module, LearnedWidthQuantizer):
            yield name.removesuffix(".parametrizations.weight.0"), module
