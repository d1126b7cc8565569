"""Bit operations of one forward pass: BOPs = Σ_layer MACs · b_w · b_a (Baskin et al. 2021, UNIQ, ACM TOCS 37).

Every out channel of a layer does the same number of multiply-accumulates, so a layer of mixed widths counts with the
mean width of its weights. Activations are the layer's inputs; 32 bits where they are not quantized.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fairquant.allocate.bitmap import BitMap

FLOAT_BITS = 32


def bops(macs: Mapping[str, int], bits: BitMap, *, activation_bits: int | Mapping[str, int] = 32) -> float:
    """Return the bit operations of the layers of ``bits``, given their multiply-accumulates for one image.

    ``activation_bits`` is one width for all layers, or one by layer; layers that are not in it have 32 bits.

    >>> import numpy as np
    >>> bops({"fc": 100}, BitMap("per_channel", {"fc": np.array([2, 4], dtype=np.uint8)}), activation_bits=8)
    2400.0
    """
    inputs = input_widths(bits.layers, activation_bits)
    return float(sum(macs[name] * float(widths.mean()) * inputs[name] for name, widths in bits.layers.items()))


def input_widths(layers: Iterable[str], activation_bits: int | Mapping[str, int]) -> dict[str, int]:
    """Return the width of each layer's input.

    >>> input_widths(["conv", "fc"], {"conv": 8}), input_widths(["fc"], 4)
    ({'conv': 8, 'fc': 32}, {'fc': 4})
    """
    if isinstance(activation_bits, int):
        return dict.fromkeys(layers, activation_bits)
    return {name: activation_bits.get(name, FLOAT_BITS) for name in layers}
