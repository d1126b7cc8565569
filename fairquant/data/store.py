"""The prepared data, read back without torch: a memory-mapped uint8 array and its table of samples."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fairquant import artifacts
from fairquant.errors import ArtifactError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Store:
    """Images, labels, groups and splits of N samples; row i of each belongs to the same sample.

    Attributes:
        images: (N, H, W, 3) uint8, memory-mapped, read-only.
        labels: (N,) int64, positions in ``classes``.
        groups: (N,) int64, positions in ``group_names``.
        splits: (N,) of "train" | "val" | "test".
        ids: the source's names of the samples.
        classes: class names.
        group_names: group names.
        meta: meta.json as ``fairquant.data.prepare`` wrote it.
        columns: every column of samples.csv as text.
    """

    images: npt.NDArray[np.uint8]
    labels: Ints
    groups: Ints
    splits: npt.NDArray[np.str_]
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    group_names: tuple[str, ...]
    meta: dict[str, Any]
    columns: dict[str, tuple[str, ...]]

    @classmethod
    def open(cls, path: str | Path = "data/prepared") -> Store:
        """Open the folder that the prepare stage writes.

        Raises:
            ArtifactError: the folder or one of its files is absent, damaged or does not match the others.
        """
        folder = Path(path)
        meta = artifacts.read_json(folder / "meta.json")
        columns = _read_columns(folder / "samples.csv")
        images = _map_images(folder / "images.npy")
        n = len(columns["id"])
        if len(images) != n:
            raise ArtifactError(
                f"{folder}: got {len(images)} images for {n} samples; rerun prepare (dvc repro prepare)"
            )
        try:
            classes, groups = tuple(meta["classes"]), tuple(meta["groups"])
            return cls(
                images,
                _codes(columns["label"], len(classes)),
                _codes(columns["group"], len(groups)),
                np.array(columns["split"], dtype="<U5"),
                columns["id"],
                classes,
                groups,
                meta,
                columns,
            )
        except (KeyError, ValueError) as error:
            raise ArtifactError(f"{folder}: samples.csv and meta.json do not match ({error}); rerun prepare") from None

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.labels)

    @property
    def image_size(self) -> int:
        """Height and width of an image, pixels."""
        return int(self.images.shape[1])

    def indices(self, split: str) -> Ints:
        """Return the rows of a split, ascending, int64."""
        return np.flatnonzero(self.splits == split).astype(np.int64)


def _read_columns(path: Path) -> dict[str, tuple[str, ...]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: not found; run the stage that writes it (dvc repro)") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: not valid csv ({error})") from None
    header = rows[0] if rows else []
    missing = [name for name in ("id", "label", "group", "split") if name not in header]
    if missing or any(len(row) != len(header) for row in rows):
        raise ArtifactError(f"{path}: got the columns {header}; allowed: the samples.csv of the prepare stage")
    return {name: tuple(row[index] for row in rows[1:]) for index, name in enumerate(header)}


def _map_images(path: Path) -> npt.NDArray[np.uint8]:
    try:
        images: npt.NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: not found; run the stage that writes it (dvc repro)") from None
    except (ValueError, OSError, EOFError) as error:
        raise ArtifactError(f"{path}: not a readable array ({error})") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ArtifactError(f"{path}: got {images.dtype} {images.shape}; allowed: uint8 (N, H, W, 3)")
    return images


def _codes(values: tuple[str, ...], count: int) -> Ints:
    codes = np.array([int(value) for value in values], np.int64)
    if len(codes) and not 0 <= codes.min() <= codes.max() < count:
        raise ValueError(f"code {codes.max()} for {count} names")
    return codes
