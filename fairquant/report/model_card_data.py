"""The model card's facts on data and groups, from data/prepared/meta.json and the settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairquant import plugins
from fairquant.report.classic import text
from fairquant.report.details import Cells
from fairquant.report.inputs import ReportInputs
from fairquant.report.shown import extremes, some

SPLITS = ("train", "val", "test")
MEANINGS = {
    "drawn": "drawn, stratified by class and group",
    "publisher": "the publisher's",
    "publisher; val drawn from train": "the publisher's, validation drawn from its training part",
    "publisher; its val is the test, val drawn from train": "the publisher's validation part is the test split, "
    "validation is drawn from its training part",
}
"""``split_source`` of meta.json in words."""


def group_factors(inputs: ReportInputs) -> list[str]:
    """Return by what people or images were told apart, a sentence each."""
    data, settings = inputs.data, inputs.params["evaluate"]
    names = data["groups"]
    sentences = [f"Groups, by {' × '.join(data['group_columns'])}: {some(names)} ({len(names)})."]
    if data["merged_groups"]:
        sentences.append(f"Groups too small to stand alone, merged into “other”: {some(data['merged_groups'])}.")
    audited = list(inputs.metrics["evaluate"].get("audit", {}))
    if audited:
        sentences.append(f"Further groupings, reported in report.md: {', '.join(audited)}.")
    sentences.append("Nothing was measured for any other group of people or images.")
    if settings["min_group_size"] > 1:
        sentences.append(
            f"Groups of fewer than {settings['min_group_size']} test images are shown, but left out of worst group and "
            "gaps."
        )
    return sentences


def choice_of_samples(inputs: ReportInputs) -> list[str]:
    """Return where the test images come from and how they were set apart, a sentence each."""
    data, section = inputs.data, inputs.params["data"]
    chosen = MEANINGS.get(data["split_source"], data["split_source"])
    total = sum(data["splits"]["test"].values())
    sentences = [
        f"The test split: {total:,} of {data['samples']:,} images of {data['source']}, never trained on.",
        f"The split is {chosen} (seed {data['seed']}).",
    ]
    if section["split_by"]:
        sentences.append(f"Images that share {section['split_by']} are on one side of the split.")
    if section["test_subset"] != 1:
        sentences.append(f"Only part of the test split was used (data.test_subset {text(section['test_subset'])}).")
    return sentences


def source(inputs: ReportInputs) -> list[str]:
    """Return what the data are and what was left out, a sentence each."""
    data, section = inputs.data, inputs.params["data"]
    summary = (plugins.load("dataset", section["name"]).__doc__ or "").split("\n\n")[0]
    total = sum(data["splits"]["train"].values())
    sentences = [
        f"Source: {' '.join(summary.split())}",
        f"The training split: {total:,} of {data['samples']:,} images of {data['source']}, counted above.",
    ]
    if section["train_subset"] != 1:
        part = text(section["train_subset"])
        sentences.append(f"Only part of the training split was used (data.train_subset {part}).")
    left_out = [f"{kind} ({count})" for kind, count in data["dropped"].items()]
    sentences.append(f"Rows left out: {', '.join(left_out) or 'none'}.")
    if data["notes"]:
        sentences.append(f"Also counted: {', '.join(f'{what} ({count})' for what, count in data['notes'].items())}.")
    return sentences


def sample_tables(inputs: ReportInputs) -> tuple[Cells, Cells]:
    """Return the cells of the images per split, by group and by class; of many those with fewest and most."""
    return _counts("group", inputs.data["splits"]), _counts("class", inputs.data["class_counts"])


def _counts(head: str, counts: Mapping[str, Mapping[str, Any]]) -> Cells:
    """Return a row per name of any split, and their sums.

    >>> _counts("group", {"train": {"a": 2}, "val": {"a": 1}, "test": {"a": 0}})
    [('group', 'train', 'val', 'test'), ('a', '2', '1', '0'), ('all', '2', '1', '0')]
    """
    rows = [(name, *(str(counts[split][name]) for split in SPLITS)) for name in extremes(counts["train"])]
    return [(head, *SPLITS), *rows, ("all", *(str(sum(counts[split].values())) for split in SPLITS))]
