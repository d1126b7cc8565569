"""moving_average: low ← (1 − c)·low + c·min x, high likewise, c the momentum; the first tensor sets both.

Exponential moving averages of the extremes (Jacob et al. 2018, arXiv 1712.05877, section 3.1), as in
``torch.ao.quantization.MovingAverageMinMaxObserver``. Keeps two numbers. Follows the activations while weights train;
values beyond the average of the extremes are clipped, and the order of the tensors matters: the last 1/c weigh most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fairquant.quantize.observers._base import Observer

TRAINS = True


def make_observer(*, bits: int, scheme: str, momentum: float, percentile: float) -> Observer:
    """Return the observer with ``momentum`` in (0, 1]; 1 is the range of the last tensor. Nothing else matters.

    >>> import torch
    >>> observer = make_observer(bits=8, scheme="asymmetric", momentum=0.25, percentile=99.99)
    >>> observer(torch.tensor([-1.0, 4.0])), observer(torch.tensor([0.0, 8.0]))
    (None, None)
    >>> observer.range()
    (tensor(-0.7500), tensor(5.))
    """
    from fairquant.quantize.observers._extremes import MovingAverage

    return MovingAverage(momentum)
