"""From a data set as published to data/prepared: one uint8 array, one table of samples, one description.

Everything wrong with the source is collected and told at once (``DataError``); the folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairquant import artifacts, plugins
from fairquant.config.schema import Config
from fairquant.data.checks import alike
from fairquant.data.decode import decode_all, new_array
from fairquant.data.problems import summarise, write_problems
from fairquant.data.raw import DataRequest, Problem, RawDataset
from fairquant.data.select import Ledger, Selection, select
from fairquant.data.splits import SPLITS
from fairquant.errors import DataError

COLUMNS = ("id", "label", "label_name", "group", "group_name", "split")
"""Columns of samples.csv in front of the source's own."""

SHARED = "images that also stand in another split"
"""The note of meta.json on images that a drawn or published split puts on several sides."""

NAMED = 12
"""How many names a line of the log lists."""

log = logging.getLogger(__name__)


def prepare(config: Config, out: str | Path = "data/prepared") -> dict[str, Any]:
    """Load, check, split and decode the data set of ``config`` into the folder ``out``; return its meta.json.

    Writes images.npy (N, H, W, 3) uint8, samples.csv (row i describes image i) and meta.json. The problems found are
    listed in problems.csv beside ``out``.

    Raises:
        DataError: files are absent or rows are bad; one line with every kind of problem. A previous ``out`` stays.
    """
    out = Path(out)
    section = config.data
    raw = _load(config)
    ledger = Ledger(drop=section.bad_rows == "drop")
    selection = select(raw, section, ledger, debug=config.debug)
    if ledger.blocks():
        ledger.problems += _unreadable(raw, section.image_size, config.workers)
        _raise(ledger.problems, out)
    with artifacts.atomic_path(out) as partial:
        partial.mkdir()
        selection = _write_images(partial, selection, ledger, config, out)
        meta = _describe(partial, selection, ledger, config)
        artifacts.write_json(partial / "meta.json", meta)
    _list_problems(ledger.problems, out)
    _report(meta, selection)
    return meta


def _load(config: Config) -> RawDataset:
    section = config.data
    request = DataRequest(
        path=Path(section.path),
        label=section.label,
        group=section.group,
        split_by=section.split_by,
        seed=section.seed,
        image_size=section.image_size,
        debug=config.debug,
        download=section.download,
    )
    raw: RawDataset = plugins.load("dataset", section.name).load(request, config.options("dataset", section.name))
    return raw


def _unreadable(raw: RawDataset, size: int, workers: int) -> list[Problem]:
    """Try to decode every image there is, so that unreadable ones are told together with the rest."""
    samples = [s for s in raw.samples if not isinstance(s.image, Path) or os.path.isfile(s.image)]
    errors = decode_all([sample.image for sample in samples], size=size, out=None, workers=workers, title="check")
    return [samples[index].problem("unreadable image", samples[index].id, text) for index, text in errors.items()]


def _raise(problems: list[Problem], out: Path) -> None:
    full_list = _problems_path(out)
    write_problems(full_list, problems)
    raise DataError(summarise(problems, full_list=full_list))


def _list_problems(problems: list[Problem], out: Path) -> None:
    """Keep the list of dropped rows; remove a list that is no longer true."""
    if problems:
        write_problems(_problems_path(out), problems)
    else:
        _problems_path(out).unlink(missing_ok=True)


def _problems_path(out: Path) -> Path:
    return out.parent / "problems.csv"


def _write_images(folder: Path, selection: Selection, ledger: Ledger, config: Config, out: Path) -> Selection:
    """Decode the selection into images.npy; rows that cannot be decoded are an error or, if asked, dropped."""
    samples = [selection.raw.samples[position] for position in selection.positions.tolist()]
    size, path = config.data.image_size, folder / "images.npy"
    errors = decode_all([sample.image for sample in samples], size=size, out=path, workers=config.workers)
    if not errors:
        return selection
    ledger.problems += [samples[i].problem("unreadable image", samples[i].id, text) for i, text in errors.items()]
    ledger.dropped["unreadable image"] += len(errors)
    kept = selection.without(errors)
    left = kept.check() + kept.shortage(config.data.min_group_size, without=selection)
    if ledger.drop:
        ledger.problems += left
    if not ledger.drop or left:
        _raise(ledger.problems, out)
    _compact(path, np.setdiff1d(np.arange(len(samples)), list(errors)))
    return kept


def _compact(path: Path, rows: np.ndarray) -> None:
    """Keep only ``rows`` of the array in ``path``."""
    images = np.load(path, mmap_mode="r")
    smaller = path.with_name("kept.npy")
    new_array(smaller, (len(rows), *images.shape[1:]))
    target = np.lib.format.open_memmap(smaller, mode="r+")
    for start in range(0, len(rows), 1024):
        target[start : start + 1024] = images[rows[start : start + 1024]]
    target.flush()
    del target, images
    os.replace(smaller, path)


def _describe(folder: Path, selection: Selection, ledger: Ledger, config: Config) -> dict[str, Any]:
    """Write samples.csv and return meta.json."""
    _write_table(folder / "samples.csv", selection)
    images = np.load(folder / "images.npy", mmap_mode="r")
    shared = shared_images(images, selection.splits.tolist())
    mean, std = channel_statistics(images[row] for row in np.flatnonzero(selection.splits == "train"))
    raw = selection.raw
    return {
        "source": raw.source,
        "seed": config.data.seed,
        "image_size": config.data.image_size,
        "classes": list(raw.classes),
        "groups": list(selection.group_names),
        "group_columns": list(raw.group_columns),
        "merged_groups": list(selection.merged),
        "split_source": selection.split_source,
        "samples": len(selection.positions),
        "splits": _counts(selection, selection.groups, selection.group_names),
        "class_counts": _counts(selection, selection.labels, raw.classes),
        "mean": mean,
        "std": std,
        "dropped": dict(sorted(ledger.dropped.items())),
        "notes": dict(raw.notes) | ({SHARED: shared} if shared else {}),
        "checksum": _checksum(folder / "images.npy", folder / "samples.csv"),
    }


def _counts(selection: Selection, codes: np.ndarray, names: Iterable[str]) -> dict[str, dict[str, int]]:
    names = list(names)
    counts = {split: np.bincount(codes[selection.splits == split], minlength=len(names)).tolist() for split in SPLITS}
    return {split: dict(zip(names, counts[split], strict=True)) for split in SPLITS}


def _write_table(path: Path, selection: Selection) -> None:
    samples = [selection.raw.samples[position] for position in selection.positions.tolist()]
    columns = list(dict.fromkeys(column for sample in samples for column in sample.attributes))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = artifacts.CsvWriter(file)
        writer.writerow([*COLUMNS, *_renamed(columns)])
        codes = zip(
            samples, selection.labels.tolist(), selection.groups.tolist(), selection.splits.tolist(), strict=True
        )
        for sample, label, group, split in codes:
            known = [sample.id, label, sample.label, group, selection.group_names[group], split]
            writer.writerow([*known, *(sample.attributes.get(column, "") for column in columns)])


def _renamed(columns: list[str]) -> list[str]:
    """Prefix the source's columns that would hide one of ours: ``label`` becomes ``source_label``."""
    taken = {*COLUMNS, *columns}
    names = []
    for column in columns:
        name = column
        while column in COLUMNS and name in taken:
            name = f"source_{name}"
        names.append(name)
    return names


def channel_statistics(images: Iterable[np.ndarray]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel of uint8 images, in units of the full range 255.

    Exact and independent of order, from histograms. A constant channel gets the deviation 1, so that it can be
    divided by.

    >>> channel_statistics([np.array([[[0, 255, 51]], [[255, 255, 51]]], np.uint8)])
    ([0.5, 1.0, 0.2], [0.5, 1.0, 1.0])
    """
    histogram = np.zeros((3, 256), np.int64)
    for image in images:
        for channel in range(3):
            histogram[channel] += np.bincount(image[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    total = histogram.sum(axis=1)
    mean = (histogram @ values) / total
    variance = (histogram * (values - mean[:, None]) ** 2).sum(axis=1) / total
    std = [round(float(s), 6) for s in np.sqrt(variance)]
    return [round(float(m), 6) for m in mean], [s or 1.0 for s in std]


def shared_images(images: Iterable[np.ndarray], splits: Sequence[str]) -> int:
    """Return how many of the images stand in another split as well, pixel for pixel.

    >>> shared_images(np.array([[1], [2], [1], [2]], np.uint8), ["train", "train", "test", "train"])
    2
    """
    digests = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
    sides: dict[bytes, set[str]] = {}
    for digest, split in zip(digests, splits, strict=True):
        sides.setdefault(digest, set()).add(split)
    return sum(len(sides[digest]) > 1 for digest in digests)


def _checksum(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _report(meta: dict[str, Any], selection: Selection) -> None:
    for kind, count in meta["dropped"].items():
        log.warning("dropped %d rows: %s", count, kind)
    absent = [name for name, count in meta["class_counts"]["train"].items() if count == 0]
    if absent:
        log.warning("%d of %d classes have no training sample: %s", len(absent), len(meta["classes"]), _some(absent))
    for names in (*alike(meta["classes"], str.casefold), *alike(meta["groups"], str.casefold)):
        log.warning("names that differ in capitals only: %s", _some(names))
    if shared := meta["notes"].get(SHARED):
        log.warning("%d images stand in several splits, pixel for pixel: the test is not independent", shared)
    counts = ", ".join(f"{split} {int((selection.splits == split).sum())}" for split in SPLITS)
    log.info("prepared %d images (%s), groups: %s", meta["samples"], counts, _some(meta["groups"]))


def _some(names: Sequence[str]) -> str:
    """Return the names, of more than a few the first and how many there are."""
    shown = ", ".join(repr(name) if name != name.strip() else name for name in names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"
