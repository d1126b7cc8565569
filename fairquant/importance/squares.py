"""Σ_i (gradient of sample i's loss)² for one weight, from the positions of the layer's calls, without autograd.

Three ways to the same number, by what is cheapest (notation of ``fairquant.importance.positions``):

- product: Σ_p δ_ip a_ipᵀ, one matrix product per sample into one small buffer, squared and added from there.
- pairs: (Σ_p d_p a_p)² = Σ_{p≤q} c_pq (d_p d_q)(a_p a_q) with c = 1 for p = q, else 2. Summed over samples this is one
  matrix product with P(P+1)/2 rows per sample, and no sample's gradient is ever formed. With one position it is
  (δ²)ᵀ(a²) (Goodfellow 2015, "Efficient per-example gradient computations", arXiv 1510.01799).
- depthwise convolutions: as many products of images as the kernel has places.

A layer called several times in one forward pass adds up the positions of all calls before anything is squared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fairquant.importance.positions import Pixels, Tokens

MOST_PAIRS = 15
"""Pairs of positions per sample up to which one large product beats a small one and a square for each sample."""
CACHED = 1 << 18
"""Numbers of a block of patches that a processor's cache holds, 1 MiB."""
LARGE = 1 << 25
"""Numbers of the buffers where only memory is the limit, 128 MiB."""

Call = Tokens | Pixels


@torch.no_grad()
def add_squares(total: Tensor, calls: Sequence[Call], scale: float) -> None:
    """Add ``scale`` · Σ_i (gradient of sample i)² to ``total``, of the weight's shape.

    Args:
        total: (out, in) or (out, in / groups, height, width); fastest where its memory is in channels-last order.
        calls: positions of every call of the layer in one forward pass, with the same samples.
        scale: a factor, such as 1 / samples for the mean.
    """
    groups = calls[0].deltas.shape[1]
    ordered = total if total.ndim == 2 else total.permute(0, 2, 3, 1)
    matrix = ordered.reshape(groups, len(total) // groups, -1)  # a view where the memory order allows
    positions = sum(call.deltas.shape[3] for call in calls)
    if matrix.shape[1] == 1 and total.ndim == 4 and total.shape[1] == 1:
        _depthwise(matrix, calls, scale)
    elif positions * (positions + 1) // 2 <= MOST_PAIRS:
        _by_pairs(matrix, calls, scale)
    else:
        _by_products(matrix, calls, scale)
    if matrix.data_ptr() != total.data_ptr():
        ordered.copy_(matrix.reshape(ordered.shape))


def _by_products(matrix: Tensor, calls: Sequence[Call], scale: float) -> None:
    """One (groups, out / groups, columns) product for each sample; an accelerator takes many samples at a time."""
    samples = len(calls[0].deltas)
    step = at_a_time(matrix, samples)
    limit = CACHED if matrix.device.type == "cpu" else LARGE
    product = matrix.new_empty((step, *matrix.shape))
    for start in range(0, samples, step):
        stop = min(start + step, samples)
        part = product[: stop - start]
        started = False
        for call in calls:
            for deltas, values in call.blocks(start, stop, limit):
                _multiply(deltas, values, part, add=started)
                started = True
        if len(part) == 1:
            matrix.addcmul_(part[0], part[0], value=scale)
        else:
            matrix.add_(part.square_().sum(0), alpha=scale)


def at_a_time(matrix: Tensor, samples: int) -> int:
    """Return how many samples' gradients are formed at once: one that stays in a processor's cache, or many."""
    return 1 if matrix.device.type == "cpu" else min(samples, max(1, LARGE // matrix.numel()))


def _multiply(deltas: Tensor, values: Tensor, out: Tensor, *, add: bool) -> None:
    """Write δᵀ-by-a of every sample and group to ``out``, or add it."""
    if len(out) == 1 and out.shape[1] == 1:  # a plain product is several times faster than a batch of one
        torch.addmm(out[0, 0], deltas[0, 0], values[0, 0], beta=int(add), out=out[0, 0])
    else:
        flat = out.flatten(0, 1)
        torch.baddbmm(flat, deltas.flatten(0, 1), values.flatten(0, 1), beta=int(add), out=flat)


def _by_pairs(matrix: Tensor, calls: Sequence[Call], scale: float) -> None:
    """One product whose rows are the pairs of positions of many samples."""
    groups, out, columns = matrix.shape
    samples, positions = len(calls[0].deltas), sum(call.deltas.shape[3] for call in calls)
    rows = positions * (positions + 1) // 2
    step = max(1, LARGE // (rows * groups * (out + columns)))
    for start in range(0, samples, step):
        blocks = [block for call in calls for block in call.blocks(start, min(start + step, samples))]
        deltas = _joined([delta.permute(1, 0, 3, 2) for delta, _ in blocks])
        values = _joined([value.transpose(0, 1) for _, value in blocks])
        left, right = _paired(deltas, rows, diagonal=0.5).transpose(1, 2), _paired(values, rows, diagonal=1)
        if groups == 1:
            matrix[0].addmm_(left[0], right[0], alpha=2 * scale)
        else:
            matrix.baddbmm_(left, right, alpha=2 * scale)
    if positions > 1:
        matrix.clamp_min_(0)  # terms of either sign may leave a rounding error below 0; NaN stays


def _joined(parts: list[Tensor]) -> Tensor:
    """Return (groups, samples, positions, width) with the positions of all calls."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _paired(values: Tensor, rows: int, *, diagonal: float) -> Tensor:
    """Return v_p v_q for p ≤ q, with a factor for p = q: (groups, samples · rows, width)."""
    groups, samples, positions, width = values.shape
    products = values.new_empty((groups, samples, rows, width))
    first = 0
    for place in range(positions):
        one, others = values[:, :, place : place + 1], values[:, :, place:]
        torch.mul(one, others, out=products[:, :, first : first + positions - place])
        if diagonal != 1:
            products[:, :, first].mul_(diagonal)
        first += positions - place
    return products.flatten(1, 2)


def _depthwise(matrix: Tensor, calls: Sequence[Call], scale: float) -> None:
    """Sums of products of images; as many samples at a time as memory that is quick to reach holds."""
    samples = len(calls[0].deltas)
    largest = max(call.deltas[0].numel() for call in calls)
    step = max(1, (CACHED if matrix.device.type == "cpu" else LARGE) // largest)
    for start in range(0, samples, step):
        gradients = sum(call.depthwise(start, min(start + step, samples)) for call in calls if isinstance(call, Pixels))
        matrix[:, 0].add_(torch.as_tensor(gradients).square().sum(0), alpha=scale)
