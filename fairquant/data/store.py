"""The prepared data, read back without torch: a memory-mapped uint8 array and its table of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from fairquant import artifacts
from fairquant.data.samples import read_samples
from fairquant.errors import ArtifactError

Ints = npt.NDArray[np.int64]
META = ("classes", "groups", "image_size", "mean", "std", "checksum")
"""What everybody needs of meta.json."""


@dataclass(frozen=True, eq=False)
class Store:
    """Images, labels, groups and splits of N samples; row i of each belongs to the same sample.

    Attributes:
        images: (N, H, W, 3) uint8, memory-mapped, read-only.
        labels: (N,) int64, positions in ``classes``.
        groups: (N,) int64, positions in ``group_names``.
        splits: (N,) of "train" | "val" | "test".
        classes: class names.
        group_names: group names.
        meta: meta.json as ``fairquant.data.prepare`` wrote it.
        columns: every column of samples.csv as text, by name.
    """

    images: npt.NDArray[np.uint8]
    labels: Ints
    groups: Ints
    splits: npt.NDArray[np.str_]
    classes: tuple[str, ...]
    group_names: tuple[str, ...]
    meta: dict[str, Any]
    columns: Mapping[str, Sequence[str]]

    @classmethod
    def open(cls, path: str | Path = "data/prepared") -> Store:
        """Open the folder that the prepare stage writes.

        Raises:
            ArtifactError: the folder or one of its files is absent, damaged or does not match the others.
        """
        folder = Path(path)
        meta = _read_meta(folder / "meta.json")
        try:
            samples = read_samples(folder / "samples.csv")
            images = _map_images(folder / "images.npy")
            n = len(samples.labels)
            if len(images) != n:
                raise ArtifactError(
                    f"{folder}: got {len(images)} images for {n} samples; rerun prepare (dvc repro prepare)"
                )
            classes, groups = tuple(meta["classes"]), tuple(meta["groups"])
            return cls(
                images,
                _codes(samples.labels, len(classes)),
                _codes(samples.groups, len(groups)),
                samples.splits,
                classes,
                groups,
                meta,
                samples.columns,
            )
        except (KeyError, ValueError, OverflowError) as error:
            raise ArtifactError(f"{folder}: samples.csv and meta.json do not match ({error}); rerun prepare") from None

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.labels)

    @property
    def ids(self) -> Sequence[str]:
        """The source's names of the samples."""
        return self.columns["id"]

    @property
    def image_size(self) -> int:
        """Height and width of an image, pixels."""
        return int(self.images.shape[1])

    def indices(self, split: str) -> Ints:
        """Return the rows of a split, ascending, int64."""
        return np.flatnonzero(self.splits == split).astype(np.int64)


def _read_meta(path: Path) -> dict[str, Any]:
    meta = artifacts.read_json(path)
    absent = [key for key in META if key not in meta]
    if absent:
        raise ArtifactError(f"{path}: got no {', '.join(absent)}; {artifacts.anew(path)}")
    return meta


def _map_images(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with artifacts.opening(path):
            images: npt.NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, TypeError, OverflowError, TokenError) as error:  # of a damaged header
        raise ArtifactError(f"{path}: not a readable array ({error}); {artifacts.anew(path)}") from None
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        got = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else "an archive"
        raise ArtifactError(f"{path}: got {got}; allowed: uint8 (N, H, W, 3); {artifacts.anew(path)}")
    return images


def _codes(codes: Ints, count: int) -> Ints:
    if len(codes) and not 0 <= codes.min() <= codes.max() < count:
        raise ValueError(f"code {codes.max()} for {count} names")
    return codes
