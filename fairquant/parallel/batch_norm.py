"""Batch norm over the rows of all processes: training normalises a batch as one process with all its rows would.

    μ = Σ_r n_r μ_r / n        M = Σ_r M_r + n_r (μ_r − μ)²        σ² = M / n        n = Σ_r n_r
    y = w (x − μ) / √(σ² + ε) + b
    ∂L/∂x = w / √(σ² + ε) · (g − Σg / n − x̂ Σ(g x̂) / n)           x̂ = (x − μ) / √(σ² + ε),  g = ∂L/∂y

n_r, μ_r and M_r are the number, the mean and the sum of squared deviations of process r's values of a channel; sums
without r go over all processes. One message forward carries (n_r, μ_r, M_r), one backward the two sums of g.

Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979;
Ioffe, Szegedy, "Batch normalization", 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from fairquant.parallel.collectives import world_size


def global_batch_norm() -> AbstractContextManager[Any]:
    """Return a context in which ``F.batch_norm`` in training normalises over the rows of all processes.

    Every process runs the same forward and, if any does, the same backward; a process may have no rows. Running
    statistics end the same everywhere. With one process nothing changes.

    The gradient of the input is exact where each process's loss gradient is that of the global loss at its own rows
    (``collectives.gather_rows`` hands it back times the number of processes, which averaged parameter gradients undo).
    Those of weight and bias are the sums over a process's own rows, as every other parameter's.
    """
    return _GlobalBatchNorm() if world_size() > 1 else nullcontext()


class _GlobalBatchNorm(TorchFunctionMode):
    """Puts ``batch_norm`` in the place of ``F.batch_norm``, whoever calls it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return (batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def batch_norm(
    input: Tensor,  # the names of F.batch_norm
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Do what ``F.batch_norm`` does, for a batch whose rows lie in all processes.

    Args:
        input: (rows of this process, C, ...); bfloat16 and float16 are computed in float32.
        running_mean: (C,), updated in place while training; None keeps none.
        running_var: (C,), updated in place with the unbiased variance.
        weight: (C,) or None for ones.
        bias: (C,) or None for zeros.
        training: False uses the running statistics and asks no other process.
        momentum: share of the batch in the running statistics.
        eps: what is added to the variance.

    Returns:
        The shape, dtype and memory format of ``input``.

    Raises:
        ValueError: as torch does, for one value per channel in all processes together.
    """
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    count, mean, deviations = _statistics(input.detach())
    if input.numel() <= input.shape[1] and count.item() == 1:  # only a process with so little waits for the device
        raise ValueError(f"Expected more than 1 value per channel when training, got {input.shape[1]} in all processes")
    if running_mean is not None and running_var is not None:
        _follow(running_mean, mean, momentum)
        _follow(running_var, deviations / (count - 1), momentum)
    dtype = torch.promote_types(input.dtype, torch.float32)
    scale = (deviations / count + eps).rsqrt()
    output: Tensor = _Normalise.apply(input, weight, bias, mean.to(dtype), scale.to(dtype), count.to(dtype))
    return output


def _follow(running: Tensor, batch: Tensor, momentum: float) -> None:
    """Move a running statistic towards the batch's."""
    with torch.no_grad():
        running.copy_((1 - momentum) * running.double() + momentum * batch)


def _statistics(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return number (1,), mean (C,) and sum of squared deviations (C,) of every process's values, in float64."""
    channels = input.shape[1]
    here = input.new_zeros(2 * channels + 1, dtype=torch.float64)
    if input.numel():
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, dim=_all_but_channels(input), correction=0)
        number = input.numel() // channels
        here = torch.cat([here[:1] + number, mean.double(), variance.double() * number])
    everywhere = [torch.empty_like(here) for _ in range(world_size())]
    dist.all_gather(everywhere, here)
    counts, means, deviations = torch.split(torch.stack(everywhere), [1, channels, channels], dim=1)
    count = counts.sum(dim=0)
    mean = (counts * means).sum(dim=0) / count
    return count, mean, (deviations + counts * (means - mean).square()).sum(dim=0)


def _all_but_channels(input: Tensor) -> list[int]:
    return [0, *range(2, input.dim())]


class _Normalise(Function):
    """y = w (x − μ) / σ + b, whose backward knows that μ and σ are made of x."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, scale: Tensor, count: Tensor
    ) -> Tensor:
        ctx.save_for_backward(input, weight, mean, scale, count)
        factor = scale if weight is None else scale * weight
        offset = torch.zeros_like(mean) if bias is None else bias.to(mean.dtype)
        centred = input.to(mean.dtype) - _as_row(mean, input)
        return torch.addcmul(_as_row(offset, input), centred, _as_row(factor, input)).to(input.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, scale, count = ctx.saved_tensors
        axes = _all_but_channels(input)
        wide = gradient.to(mean.dtype)
        normal = (input.to(mean.dtype) - _as_row(mean, input)) * _as_row(scale, input)
        sums = torch.stack([wide.sum(dim=axes), (wide * normal).sum(dim=axes)])
        here = sums.clone()
        to_input = None
        if ctx.needs_input_grad[0]:
            dist.all_reduce(sums)
            share, slope = sums / count
            factor = scale if weight is None else scale * weight
            centred = wide - _as_row(share, input) - normal * _as_row(slope, input)
            to_input = (centred * _as_row(factor, input)).to(input.dtype)
        to_weight = here[1].to(weight.dtype) if ctx.needs_input_grad[1] else None
        to_bias = here[0].to(mean.dtype) if ctx.needs_input_grad[2] else None
        return to_input, to_weight, to_bias, None, None, None


def _as_row(values: Tensor, like: Tensor) -> Tensor:
    """Return (C,) as (1, C, 1, ...)."""
    return values.view(1, -1, *[1] * (like.dim() - 2))
