"""What a model said about each sample of a split, with the names of classes and groups travelling along.

Metrics take these arrays, never a model or a loader. On disk: one safetensors file, keys ``<split>.<field>``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fairquant.artifacts import read_tensors, write_tensors
from fairquant.errors import ArtifactError


@dataclass(frozen=True)
class SplitPredictions:
    """Predictions of one split, in the store's order.

    Attributes:
        logits: float32 (N, C), the model's raw outputs.
        labels: int64 (N,), true classes in [0, C).
        groups: int64 (N,), group of each sample.
        indices: int64 (N,), rows of the store.
    """

    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        """Refuse arrays that do not describe the same samples."""
        shapes = {field.name: np.shape(getattr(self, field.name)) for field in fields(self)}
        if len(shapes["logits"]) != 2 or {shapes[name] for name in ("labels", "groups", "indices")} != {
            shapes["logits"][:1]
        }:
            raise ArtifactError(f"predictions: got shapes {shapes}; allowed: logits (N, C) and the others (N,)")

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """The predicted class of each sample, int64 (N,); the first of equal logits."""
        predicted: npt.NDArray[np.int64] = np.argmax(self.logits, axis=1).astype(np.int64, copy=False)
        return predicted


@dataclass(frozen=True)
class Predictions:
    """Predictions of several splits of one data set."""

    classes: tuple[str, ...]
    groups: tuple[str, ...]
    splits: Mapping[str, SplitPredictions]

    def __getitem__(self, split: str) -> SplitPredictions:
        """Return the predictions of ``split``; an absent split raises ``ArtifactError``."""
        if split not in self.splits:
            raise ArtifactError(f"predictions: got split {split!r}; allowed: {' | '.join(sorted(self.splits))}")
        return self.splits[split]

    def save(self, path: str | Path) -> None:
        """Write all splits to one safetensors file."""
        arrays = {
            f"{split}.{field.name}": getattr(part, field.name)
            for split, part in self.splits.items()
            for field in fields(part)
        }
        meta = {"classes": self.classes, "groups": self.groups, "splits": sorted(self.splits)}
        write_tensors(path, arrays, meta=meta)

    @classmethod
    def load(cls, path: str | Path) -> Predictions:
        """Read what ``save`` wrote; a missing or foreign file raises ``ArtifactError``."""
        arrays, meta = read_tensors(path)
        try:
            splits = {split: _split(arrays, split) for split in meta["splits"]}
            return cls(tuple(meta["classes"]), tuple(meta["groups"]), splits)
        except KeyError as error:
            raise ArtifactError(f"{path}: got a file without {error}; allowed: predictions of a stage") from None


def _split(arrays: Mapping[str, npt.NDArray[Any]], split: str) -> SplitPredictions:
    return SplitPredictions(**{field.name: arrays[f"{split}.{field.name}"] for field in fields(SplitPredictions)})
