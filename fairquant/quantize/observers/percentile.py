"""percentile: what lies beyond a percentile of all values is clipped (McKinstry et al. 2018, arXiv 1809.04191, 3.1).

Symmetric: high = P_p(|x|), low = −high. Asymmetric: from P_((100−p)/2)(x) to P_((100+p)/2)(x). Either way p % of the
values lie inside. Percentiles are numpy's, interpolated linearly between ranks, over every value of every tensor
together (not an average of each tensor's percentiles).

They are read from a histogram, 256 kB whatever the number of images: each end is outwards of the exact percentile by
at most max|x| / 8192 (one bin), and never beyond the extremes seen; 100 is ``minmax``. Unlike ``histogram`` and
``mse``, it ignores the width: the same share is clipped at 2 bits as at 16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fairquant.quantize.observers._base import Observer

TRAINS = False


def make_observer(*, bits: int, scheme: str, momentum: float, percentile: float) -> Observer:
    """Return the observer with ``percentile`` in (50, 100] for ``scheme``.

    >>> import torch
    >>> observer = make_observer(bits=8, scheme="asymmetric", momentum=0.1, percentile=80.0)
    >>> observer(torch.arange(0.0, 101.0)), observer(torch.arange(0.0, 101.0) - 100)
    (None, None)
    >>> observer.range()  # exactly -79.9 and 79.9
    (tensor(-79.9000), tensor(79.9078))
    """
    from fairquant.quantize.observers._percentile import Percentile

    return Percentile(percentile, symmetric=scheme == "symmetric")
