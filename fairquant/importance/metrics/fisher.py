r"""Fisher: I = mean over samples of (∂ℓ_i/∂w)², the diagonal of the group's empirical Fisher information.

    F_g(w) = 1/|g| Σ_{i ∈ g} (∂ℓ_i/∂w)²          ℓ_i = −log p(label_i | image_i)

Each sample's gradient is squared before anything is averaged, so the map does not depend on how samples are batched
(grape squares a batch's mean gradient, which is near 0 for a trained model). With ``normalize: none`` it is the sum
over batches of their means. Moving the weights by δ raises the group's loss by about ½ Σ_w F_g(w) δ²: at a minimum the
gradient is 0, and the Hessian of a log-likelihood is the Fisher information where the model's probabilities are true.

Limits. This is the empirical Fisher: it takes the given labels where the Fisher information takes labels drawn from
the model. The two agree only for a model that fits, with many samples (Kunstner et al. 2019): samples that the model
gets wrong weigh more here than in the curvature, samples it is sure and right about less. Off-diagonal terms are left
out, and the loss is taken as quadratic, which holds for small δ.

Exact, from the structure of convolutions and linear layers (``fairquant.importance.per_sample``); sums are float32 for
every ``precision``.

Source: Theis, Korshunova, Tejani, Huszár, "Faster gaze prediction with dense networks and Fisher pruning", 2018,
arXiv 1801.05787 (½Fδ²); Amari, "Natural gradient works efficiently in learning", Neural Computation 10, 1998; Kunstner,
Balles, Hennig, "Limitations of the empirical Fisher approximation for natural gradient descent", NeurIPS 2019, arXiv
1905.12558.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fairquant.config import Section

if TYPE_CHECKING:
    from torch import Tensor

    from fairquant.importance.metric import SampleScores
    from fairquant.models.layers import Layer


class Options(Section):
    """No settings."""


def score(derivative: Tensor, weight: Tensor) -> Tensor:
    """Return gradient² of one sample, of the weight's shape."""
    return derivative.square()


def sample_scores(layers: Mapping[str, Layer]) -> SampleScores:
    """Return what adds up ``score`` over single samples for ``layers``."""
    from fairquant.importance.per_sample import PerSampleSquares

    return PerSampleSquares(layers)


def predicted_increase(
    importance: npt.NDArray[np.float32], delta: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    r"""Return ½Fδ² per weight: the change of the mean loss under ``weight + delta``, to second order.

    ``importance`` (..., \*S) is a map averaged over samples; ``delta`` and ``weight`` have shape \*S.

    >>> predicted_increase(np.float32([4, 3]), np.float32([-0.5, 0]), np.float32([2, 0])).tolist()
    [0.5, 0.0]
    """
    return importance * np.square(delta) * np.float32(0.5)
