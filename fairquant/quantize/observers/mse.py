"""mse: the min-max range shrunk by the factor c ≤ 1 whose grid has the least expected squared error.

min_c Σ_bins n · E[(x̂ − x)²] with low = c·min, high = c·max (the "MSE" range setting of Nagel et al. 2021,
arXiv 2106.08295, section 3.1, over one factor as in Banner et al. 2019, arXiv 1810.05723). c = 1 is among the
candidates, so the expected error never exceeds that of ``minmax``.

What is kept is a histogram of all values, 32 kB whatever the number of images, not the values: within a bin, at most
max|x| / 1024 wide, they are taken to be uniform. One factor for both ends keeps the share of the range below 0, hence
the zero point; ``histogram`` moves the ends apart from each other, and does better where one tail alone is long. The
two agree on what comes out of a ReLU, which has one end, and on symmetric grids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fairquant.quantize.observers._base import Observer

TRAINS = False


def make_observer(*, bits: int, scheme: str, momentum: float, percentile: float) -> Observer:
    """Return the observer for a grid of ``bits`` and ``scheme``; nothing else matters.

    >>> import torch
    >>> observer = make_observer(bits=4, scheme="asymmetric", momentum=0.1, percentile=99.99)
    >>> observer(torch.cat([torch.linspace(-1.0, 1.0, 10_000), torch.tensor([-10.0, 10.0])]))
    >>> observer.range()
    (tensor(-1.1970), tensor(1.1970))
    """
    from fairquant.quantize.affine import Codes
    from fairquant.quantize.observers._search import Searched

    return Searched(Codes.of(bits, scheme), together=True)
