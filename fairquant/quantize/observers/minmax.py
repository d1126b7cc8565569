"""minmax: low = min, high = max over every tensor seen ("min-max", Nagel et al. 2021, arXiv 2106.08295, section 3.1).

Nothing is ever clipped, so a single outlier sets the step size of all. Keeps two numbers. In training the range only
grows, also from the large activations of the first steps; ``moving_average`` forgets them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fairquant.quantize.observers._base import Observer

TRAINS = True


def make_observer(*, bits: int, scheme: str, momentum: float, percentile: float) -> Observer:
    """Return the observer; no setting matters to it.

    >>> import torch
    >>> observer = make_observer(bits=8, scheme="asymmetric", momentum=0.1, percentile=99.99)
    >>> observer(torch.tensor([-1.0, 4.0])), observer(torch.tensor([0.0, 5.0]))
    (None, None)
    >>> observer.range()
    (tensor(-1.), tensor(5.))
    """
    from fairquant.quantize.observers._extremes import MinMax

    return MinMax()
