"""What post-processing is given and what it returns."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LOG = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Scores:
    """What a two-class classifier says of N samples.

    Attributes:
        probability: float64 (N,) in [0, 1], of the positive class.
        decision: bool (N,), whether it predicts the positive class.
    """

    probability: Floats
    decision: Bools

    @classmethod
    def of(cls, logits: npt.NDArray[np.floating], positive: int) -> Scores:
        """Return the softmax probability and the prediction of class ``positive``; logits are (N, 2).

        Of equal logits the first class is predicted, as everywhere.

        >>> scores = Scores.of(np.array([[0.0, 0.0], [0.0, np.log(3.0)]]), 1)
        >>> scores.probability.round(4).tolist(), scores.decision.tolist()
        ([0.5, 0.75], [False, True])
        """
        wide = np.asarray(logits, np.float64)
        margin = wide[:, positive] - wide[:, 1 - positive]
        small = np.exp(-np.abs(margin))  # never overflows
        probability = np.where(margin >= 0, 1.0, small) / (1.0 + small)
        return cls(probability, np.argmax(wide, axis=1) == positive)

    def only(self, chosen: Bools) -> Scores:
        """Return the scores of the ``chosen`` samples (N,)."""
        return Scores(self.probability[chosen], self.decision[chosen])


class Fitted(ABC):
    """A fitted method: it decides about any samples of the groups it was fitted for."""

    @abstractmethod
    def chance(self, scores: Scores, members: Ints) -> Floats:
        """Return the probability with which each sample is decided positive, (N,) in [0, 1]."""

    @abstractmethod
    def settings(self) -> dict[str, dict[str, float]]:
        """Return what was fitted, by group name; groups left as they were are missing."""

    def predict(self, scores: Scores, members: Ints, *, seed: int) -> Bools:
        """Return the decisions, (N,); those left to the lot are drawn with ``seed``."""
        draws = np.random.default_rng(seed).random(len(members))
        return np.asarray(draws < self.chance(scores, members))


def usable(
    known: Sequence[bool], positives: Bools, members: Ints, *, groups: Sequence[str], method: str
) -> tuple[int, ...]:
    """Return the numbers of the groups that ``method`` can be fitted for; none where fewer than two remain.

    Args:
        known: (G,), whether what the method needs of a group is defined.
        positives: (N,), the samples it is fitted on.
        members: (N,), their groups.
        groups: G names.
        method: for the warning that names the other groups.
    """
    chosen = tuple(g for g, good in enumerate(known) if good)
    left_out = []
    for g in sorted(set(range(len(groups))) - set(chosen)):
        own = positives[members == g]
        left_out.append(f"{groups[g]!r} ({int(own.sum())} of the positive class, {int((~own).sum())} of the other)")
    if left_out:
        text = "evaluate.postprocess: %s: too few validation samples to fit on in %s; left with the model's decisions"
        LOG.warning(text, method, ", ".join(left_out))
    if len(chosen) < 2:
        LOG.warning("evaluate.postprocess: %s: fewer than two groups to make equal; nothing is changed", method)
        return ()
    return chosen
