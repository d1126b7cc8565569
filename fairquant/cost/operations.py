"""Bit operations of a quantized model: BOPs = Σ_layers MACs · mean weight bits · activation bits. No torch.

MACs per layer come from the model's description (``fairquant.models.macs``). Every weight of a layer takes part in the
same number of MACs, so the mean width over a layer's weights (or over its output channels, which have equally many
weights) is exact. Source: Baskin et al., "UNIQ: Uniform Noise Injection for Non-Uniform Quantization of Neural
Networks", ACM TOCS 2021; here without its accumulator term.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fairquant.errors import ArtifactError


def bops(macs: Mapping[str, int], bits: Mapping[str, npt.NDArray[np.uint8]], activation_bits: int = 32) -> float:
    r"""Return the bit operations of one image.

    Args:
        macs: multiply-accumulates per layer.
        bits: weight widths per layer: one per tensor (), output channel (out,) or weight (\*S). A pruned channel
            (0 bits) costs nothing.
        activation_bits: width of the activations; 32 where they are not quantized.

    Raises ``ArtifactError`` when the two do not name the same layers.

    >>> bops({"conv": 100}, {"conv": np.array([2, 4], np.uint8)})
    9600.0
    """
    if set(macs) != set(bits):
        different = sorted(set(macs) ^ set(bits))
        raise ArtifactError(f"bits: got other layers than the model's ({', '.join(different[:4])}); run assign again")
    return float(
        sum(count * float(np.mean(bits[name], dtype=np.float64)) for name, count in macs.items()) * activation_bits
    )
