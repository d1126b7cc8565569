"""HAWQ: I = |h| · w², with h the diagonal of the Hessian of the group's mean loss, estimated without forming it.

Hutchinson's estimate: E[v ⊙ Hv] = diag(H) for Rademacher v (independent signs ±1), where Hv is one more backward pass
through the gradient. ``samples`` vectors are drawn for each batch and h is the mean of v ⊙ Hv over all of them:

    h_b = 1/n Σ_v v ⊙ H_b v          h = Σ_b n_b h_b / Σ_b n_b          I = |h| · w²

The estimate is linear in the loss, so the magnitude is taken last, after the mean over vectors *and* over batches:
E|v ⊙ Hv| ≥ |diag H|, and noise of either kind would count as curvature (the published code takes it first). With
``normalize: none`` batches are scored one by one and summed, Σ_b |h_b| · w², the published form; one batch of all
samples makes both the same up to the sum. docs/decisions/006 argues the choice.

Second derivatives are computed in float32 whatever ``precision`` says: bfloat16 keeps eight bits, and products of
two rounded backward passes keep fewer. Operations without a second derivative run in an equal form that has one
(``fairquant.importance.twice``). All weights share one vector, so a pass costs the same for any number of layers; the
noise of the other layers averages out. Groups share their vectors batch by batch, so that what differs between two
groups is their loss alone.

Source: Dong et al., "HAWQ: Hessian AWare Quantization of Neural Networks with Mixed-Precision", ICCV 2019, and
"HAWQ-V2", NeurIPS 2020; Hutchinson, "A stochastic estimator of the trace of the influence matrix for Laplacian
smoothing splines", Communications in Statistics 18, 1989; Bekas, Kokiopoulou, Saad, "An estimator for the diagonal of
a matrix", Applied Numerical Mathematics 57, 2007.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fairquant.config import Section
from fairquant.config.base import Int, number
from fairquant.importance.metrics._relative import squared_ratio

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

AVERAGED = "derivative"


class Options(Section):
    """How well the diagonal is estimated: ``samples`` Rademacher vectors per batch, each one more backward pass."""

    samples: Int = number(2, ge=1, le=10_000)


def score(derivative: Tensor, weight: Tensor) -> Tensor:
    """Return |h| · w² of the estimated diagonal ``derivative``, of the weight's shape."""
    return derivative.abs() * weight.square()


@contextmanager
def forward(device: torch.device, precision: str) -> Iterator[None]:
    """Let everything in the forward pass be differentiable twice, in float32 for every ``precision``."""
    from fairquant.importance.twice import twice_differentiable

    with twice_differentiable():
        yield


def derivative(
    loss: Tensor, weights: Sequence[nn.Parameter], options: Options, seeds: tuple[int, int]
) -> list[Tensor | None]:
    """Return the mean of v ⊙ Hv over ``options.samples`` vectors, per weight; frees the loss's graph.

    Args:
        loss: mean loss of one batch, with its graph.
        weights: with respect to which H is taken.
        options: number of vectors.
        seeds: seed and number of the batch; together they fix the vectors.

    Raises ``UserError`` for a model with an operation that has no second derivative.
    """
    from fairquant.importance.twice import refused

    with refused("hawq"):
        return _diagonal(loss, weights, options.samples, seeds)


def _diagonal(
    loss: Tensor, weights: Sequence[nn.Parameter], samples: int, seeds: tuple[int, int]
) -> list[Tensor | None]:
    import torch

    from fairquant.importance.twice import require_graph

    gradients = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
    curved = [index for index, value in enumerate(gradients) if value is not None and value.requires_grad]
    estimate: list[Tensor | None] = [None] * len(weights)
    if not curved:
        return estimate
    outputs, inputs = [gradients[index] for index in curved], [weights[index] for index in curved]
    require_graph(outputs)
    random = _generator(seeds, loss.device)
    for sample in range(samples):
        signs = [_signs(weight, random) for weight in inputs]
        more = sample + 1 < samples
        products = torch.autograd.grad(outputs, inputs, signs, retain_graph=more, materialize_grads=True)
        for index, sign, product in zip(curved, signs, products, strict=True):
            term = sign.mul_(product).div_(samples)
            held = estimate[index]
            estimate[index] = term if held is None else held.add_(term)
    return estimate


def _generator(seeds: tuple[int, int], device: torch.device) -> torch.Generator:
    import torch

    state = np.random.SeedSequence(seeds).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]))


def _signs(weight: Tensor, random: torch.Generator) -> Tensor:
    """Return independent signs ±1, as likely one as the other, of the shape, layout and kind of ``weight``."""
    import torch

    return torch.empty_like(weight, requires_grad=False).random_(0, 2, generator=random).mul_(2).sub_(1)


def predicted_increase(
    importance: npt.NDArray[np.float32], delta: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    r"""Return ½|h|δ² per weight, recovered from the map as importance · (δ/w)² / 2.

    ``importance`` (..., \*S) is a map of ``score``; ``delta`` and ``weight`` have shape \*S. The map of a weight that
    is 0 says nothing about moving it, so ``delta`` must be 0 there; else ``ValueError``.

    >>> predicted_increase(np.float32([4, 0]), np.float32([0.5, 0]), np.float32([2, 0])).tolist()
    [0.125, 0.0]
    """
    return importance * squared_ratio(delta, weight) * np.float32(0.5)
