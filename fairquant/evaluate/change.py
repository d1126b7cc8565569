"""What compression changed, sample by sample: two models on the same samples, per group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fairquant.errors import ArtifactError
from fairquant.evaluate.groups import Floats, Ints, ratio
from fairquant.predictions import SplitPredictions


@dataclass(frozen=True)
class GroupChange:
    """Per-group values (G,) of two models, ``groups`` naming them; NaN where a group has no samples.

    Attributes:
        groups: G names.
        counts: samples.
        before: accuracy of the first model.
        after: accuracy of the second model.
        flips: samples whose predicted class differs between the two.
        lost: samples the first gets right and the second wrong.
        won: samples the first gets wrong and the second right.
    """

    groups: tuple[str, ...]
    counts: Ints
    before: Floats
    after: Floats
    flips: Ints
    lost: Ints
    won: Ints

    @property
    def change(self) -> Floats:
        """Accuracy after minus before, (won - lost) / n."""
        return self.after - self.before


def compare(before: SplitPredictions, after: SplitPredictions, *, groups: Sequence[str]) -> GroupChange:
    """Compare two models on the same samples; other samples raise ``ArtifactError``."""
    require_same_samples(before, after)
    right_before = before.predicted == before.labels
    right_after = after.predicted == after.labels

    def count(mask: np.ndarray) -> Ints:
        return np.bincount(before.groups[mask], minlength=len(groups)).astype(np.int64, copy=False)

    counts = count(np.ones(len(before.groups), dtype=bool))
    return GroupChange(
        groups=tuple(groups),
        counts=counts,
        before=ratio(count(right_before), counts),
        after=ratio(count(right_after), counts),
        flips=count(before.predicted != after.predicted),
        lost=count(right_before & ~right_after),
        won=count(~right_before & right_after),
    )


def require_same_samples(before: SplitPredictions, after: SplitPredictions) -> None:
    """Raise ``ArtifactError`` unless both hold the same rows with the same labels and groups in the same order."""
    for name in ("indices", "labels", "groups"):
        if not np.array_equal(getattr(before, name), getattr(after, name)):
            sizes = f"{len(before.labels)} and {len(after.labels)} samples whose {name} differ"
            raise ArtifactError(f"predictions before and after: got {sizes}; allowed: the same samples (dvc repro)")
