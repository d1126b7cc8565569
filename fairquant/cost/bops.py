"""Bit operations of one forward pass: BOPs = Σ_layer MACs · b_w · b_a (Baskin et al. 2021, UNIQ, ACM TOCS 37).

Every out channel of a layer does the same number of multiply-accumulates, so a layer of mixed widths counts with the
mean width of its weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from fairquant.allocate.bitmap import BitMap


def bops(macs: Mapping[str, int], bits: BitMap, *, activation_bits: int = 32) -> float:
    """Return the bit operations of the layers of ``bits``, given their multiply-accumulates for one image.

    >>> import numpy as np
    >>> bops({"fc": 100}, BitMap("per_channel", {"fc": np.array([2, 4], dtype=np.uint8)}), activation_bits=8)
    2400.0
    """
    return float(sum(macs[name] * float(widths.mean()) * activation_bits for name, widths in bits.layers.items()))
