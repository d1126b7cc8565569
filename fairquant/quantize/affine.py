"""Affine fake quantization of a whole tensor: x̂ = (clamp(round(x/Δ) + z, q_min, q_max) − z) · Δ, ties to even.

Asymmetric grids have codes 0 … 2^b − 1 and a zero point z among them; symmetric ones −M … M, M = 2^(b−1) − 1, and
z = 0 (Jacob et al. 2018, arXiv 1712.05877, section 2.1; Nagel et al. 2021, arXiv 2106.08295, section 2.2). x = 0 is
always a code of its own, so padding and ReLU's zeros cost nothing.

The results are those of ``torch.fake_quantize_per_tensor_affine`` to the last bit (x/Δ is x · (1/Δ) there and here),
except where that kernel is undefined: NaN stays NaN here, and ±∞ goes to the end of the grid on its own side. Six
plain operations in place replace the kernel because it is not vectorized (``benchmarks/bench_activation.py``).

Gradients are straight-through (Bengio et al. 2013, arXiv 1308.3432) as in torch: 1 where round(x/Δ) + z is a code, 0
where it was clipped. They are found again from x, so no mask is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fairquant.errors import UserError

Scheme = Literal["asymmetric", "symmetric"]

SMALLEST = 2.0**-64
"""The least Δ: also its product with a weight's step size is a normal number, which an integer bias is counted in."""


@dataclass(frozen=True)
class Codes:
    """The integers of a grid, and how a range becomes one.

    >>> Codes.of(8, "asymmetric"), Codes.of(4, "symmetric")
    (Codes(least=0, largest=255, symmetric=False), Codes(least=-7, largest=7, symmetric=True))
    """

    least: int
    largest: int
    symmetric: bool

    @classmethod
    def of(cls, bits: int, scheme: str) -> Codes:
        """Return the codes of ``bits`` in [2, 16] and ``scheme``; ``UserError`` for any other."""
        if not 2 <= bits <= 16:
            raise UserError(f"activation bits: got {bits}; allowed: 2 to 16")
        if scheme not in get_args(Scheme):
            raise UserError(f"activation scheme: got {scheme!r}; allowed: {' | '.join(get_args(Scheme))}")
        half = 2 ** (bits - 1) - 1
        return cls(-half, half, True) if scheme == "symmetric" else cls(0, 2**bits - 1, False)

    def grid(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return Δ > 0 (float32) and z (int32) for the range [low, high], widened until it holds 0.

        Asymmetric: Δ = (high − low) / (q_max − q_min), z = q_min − round(low/Δ). Symmetric: Δ = max(−low, high) / M.
        The formulas of torch.ao's observers, with a lower least Δ (theirs, 1.2e-7, would leave a 16-bit grid with a
        range below 0.0078 half of its codes or fewer). A range of 0 gets Δ = 1: any would do. Shapes broadcast;
        NaN gives NaN.

        >>> codes = Codes.of(8, "asymmetric")
        >>> codes.grid(torch.tensor(-1.0), torch.tensor(1.55))
        (tensor(0.0100), tensor(100, dtype=torch.int32))
        >>> codes.grid(torch.tensor(2.0), torch.tensor(5.1))
        (tensor(0.0200), tensor(0, dtype=torch.int32))
        """
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        width, steps = high - low, self.largest - self.least
        if self.symmetric:
            width, steps = torch.maximum(-low, high), self.largest
        scale = torch.where(width == 0, 1.0, (width / float(steps)).clamp(min=SMALLEST))
        if self.symmetric:
            return scale, torch.zeros_like(scale, dtype=torch.int32)
        zero_point = self.least - torch.round(low / scale).nan_to_num(0.0)
        return scale, zero_point.clamp(self.least, self.largest).to(torch.int32)


class _FakeQuantizeAffine(torch.autograd.Function):
    """Keeps x, which the operation that made it mostly keeps anyway; 16-bit floats are computed in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inverse: Tensor, zero_point: Tensor, scale: Tensor, codes: Codes) -> Tensor:
        """Return the fake-quantized x, of its dtype and memory format."""
        ctx.codes = codes
        ctx.save_for_backward(x, inverse, zero_point)
        out = _unclipped(x, inverse, zero_point)
        return out.clamp_(codes.least, codes.largest).sub_(zero_point).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Return the gradient where the code was not clipped, 0 elsewhere."""
        x, inverse, zero_point = ctx.saved_tensors
        codes = _unclipped(x, inverse, zero_point)
        least, largest = ctx.codes.least - 0.5, ctx.codes.largest + 0.5  # codes are whole: the bounds are never met
        passed = torch.ops.aten.hardtanh_backward(gradient.to(codes.dtype), codes, least, largest)
        return passed.to(gradient.dtype), None, None, None, None


def _unclipped(x: Tensor, inverse: Tensor, zero_point: Tensor) -> Tensor:
    """Return round(x/Δ) + z in fresh memory; adding z also turns −0 into 0, as whole numbers have it."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    return torch.mul(wide, inverse).round_().add_(zero_point)


def fake_quantize_affine(x: Tensor, scale: Tensor, zero_point: Tensor, codes: Codes) -> Tensor:
    """Fake-quantize ``x`` (any shape and memory format) with one Δ and one zero point for all of it.

    Args:
        x: a floating tensor. 16-bit floats are computed in float32 and rounded to their own type at the end, so that
            the codes are those of the exact value.
        scale: Δ > 0, shape (), on the device of ``x``.
        zero_point: z, an integer tensor of shape () between the least and the largest code.
        codes: the grid's integers.

    Returns:
        A tensor like ``x``, differentiable with respect to it. Nothing waits for the device.

    >>> x = torch.tensor([-1.0, -0.26, 0.0, 0.24, 9.0], requires_grad=True)
    >>> out = fake_quantize_affine(x, torch.tensor(0.5), torch.tensor(1), Codes.of(2, "asymmetric"))
    >>> out.tolist()
    [-0.5, -0.5, 0.0, 0.0, 1.0]
    >>> out.sum().backward()
    >>> x.grad.tolist()
    [0.0, 1.0, 1.0, 1.0, 0.0]
    """
    result: Tensor = _FakeQuantizeAffine.apply(x, scale.reciprocal(), zero_point.to(scale.dtype), scale, codes)
    return result
