"""What the report is made of: the pipeline's small results, read once into one frozen object."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairquant import plugins
from fairquant.artifacts import anew, read_json, read_text
from fairquant.config import Config
from fairquant.errors import ArtifactError

Row = Mapping[str, str]

METRICS: Mapping[str, tuple[str, ...]] = {
    "pretrain": (),
    "baseline": (),
    "bits": ("avg_bits", "size", "gbops", "share"),
    "quantize": ("bits", "share"),
    "evaluate": ("overall", "worst_group", "group", "cost"),
    "export": ("provenance", "size"),
}
"""The metrics files, in the order of the pipeline, and what the report cannot do without."""

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "layers.csv": ("layer", "bits"),
    "bit_distribution.csv": ("layer", "kind", "parameters", "units", "avg_bits"),
    "bits.csv": ("layer", "kind", "parameters", "bits"),
    "pareto.csv": ("budget", "avg_bits", "packed_mb", "group", "predicted", "measured", "accuracy"),
    "curve.csv": ("epoch", "lr", "train_loss", "val_loss", "val_accuracy", "val_worst_group_accuracy"),
}
"""The tables by file name, and the columns the report cannot do without."""

WIDTHS = {"assigned": "plots/bits", "final": "plots/quantize"}
"""Where the widths stand that the allocator chose, and those of the finished model."""


@dataclass(frozen=True)
class ReportInputs:
    """Parsed results of all stages.

    ``params``: every setting, sections nested; ``metrics``: stage → its metrics; ``data``: data/prepared/meta.json;
    ``model``: models/pretrained.json, the full-precision classifier; ``layers`` and ``distribution``: assigned | final
    → one row per quantizable layer; ``reasons``: plots/bits/bits.csv, one row per layer: its share of each group's
    importance and, where losses were predicted, what widths cost; ``budget_curve``: plots/bits/pareto.csv, one row per
    budget and group, none without a budget; ``curves``: stage → rows per epoch; ``logs``: stage → its training log.
    """

    params: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    layers: Mapping[str, tuple[Row, ...]]
    distribution: Mapping[str, tuple[Row, ...]]
    reasons: tuple[Row, ...]
    budget_curve: tuple[Row, ...]
    curves: Mapping[str, tuple[Row, ...]]
    logs: Mapping[str, str]

    @property
    def title(self) -> str:
        """What the report is called."""
        return str(self.params["report"]["title"])


def read_inputs(params: Mapping[str, Any], root: str | Path = ".") -> ReportInputs:
    """Read metrics/*.json, plots/ and the descriptions of data and model under ``root``.

    A missing or broken file raises ``ArtifactError``.
    """
    base = Path(root)
    layers = _both_widths(base, "layers.csv")
    return ReportInputs(
        params=params,
        metrics={name: _read_object(base / f"metrics/{name}.json", keys) for name, keys in METRICS.items()},
        data=_read_object(base / "data/prepared/meta.json", ("source", "classes", "groups", "splits")),
        model=_read_object(base / "models/pretrained.json", ("spec", "layers", "macs", "parameters")),
        layers=layers,
        distribution=_both_widths(base, "bit_distribution.csv"),
        reasons=_read_layers(base / WIDTHS["assigned"] / "bits.csv", layers["assigned"]),
        budget_curve=read_csv(base / WIDTHS["assigned"] / "pareto.csv"),
        curves={name: read_csv(base / f"plots/{name}/curve.csv") for name in ("pretrain", "quantize")},
        logs={name: read_text(base / f"plots/{name}/training.log") for name in ("pretrain", "quantize")},
    )


def plain_params(config: Config) -> dict[str, Any]:
    """Return every setting of ``config`` as plain nested values, defaults of the chosen plug-ins included."""
    values = {name: getattr(config, name) for name in Config.model_fields}
    params = {
        name: value.model_dump(mode="json") if hasattr(value, "model_dump") else value for name, value in values.items()
    }
    chosen = (
        (params["datasets"], plugins.load("dataset", config.data.name), config.data.name),
        (params["assign"]["reducers"], plugins.load("reducer", config.reducer), config.reducer),
        (
            params["importance"]["metrics"],
            plugins.load("importance", config.importance_metric),
            config.importance_metric,
        ),
    )
    for table, plugin, name in chosen:
        table[name] = plugin.Options(**table.get(name, {})).model_dump(mode="json")
    return params


def read_csv(path: Path) -> tuple[Row, ...]:
    """Return the rows of a csv file by column name.

    Raises:
        ArtifactError: no file, no text, not the columns of a file of that name, or a row of another length.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    columns, expected = tuple(reader.fieldnames or ()), COLUMNS.get(path.name, ())
    if not set(expected) <= set(columns):
        got = ", ".join(columns) or "none"
        raise ArtifactError(f"{path}: got the columns {got}; needed: {', '.join(expected)}; {anew(path)}")
    rows = tuple(reader)
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise ArtifactError(
                f"{path}: row {number}: got another number of fields than the header; allowed: the same"
            )
    return rows


def _read_object(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Read a JSON object that has ``keys``; another one raises ``ArtifactError``."""
    value = read_json(path)
    absent = [key for key in keys if key not in value]
    if absent:
        raise ArtifactError(f"{path}: got no {', '.join(absent)}; {anew(path)}")
    return value


def number(cell: str | None) -> float | None:
    """Return a cell's value; None where it is absent, empty or not finite.

    >>> number("0.5"), number(""), number("nan"), number(None)
    (0.5, None, None, None)
    """
    value = float(cell) if cell else math.nan
    return value if math.isfinite(value) else None


def _both_widths(base: Path, name: str) -> dict[str, tuple[Row, ...]]:
    """Read table ``name`` of the assigned and of the final widths; other layers raise ``ArtifactError``."""
    assigned = read_csv(base / WIDTHS["assigned"] / name)
    return {"assigned": assigned, "final": _read_layers(base / WIDTHS["final"] / name, assigned, like=name)}


def _read_layers(path: Path, assigned: Sequence[Row], *, like: str = "layers.csv") -> tuple[Row, ...]:
    """Read a table with one row per layer, those of ``assigned`` (the table ``like``) in the same order."""
    rows = read_csv(path)
    expected, found = ([row["layer"] for row in table] for table in (assigned, rows))
    if expected != found or not found:
        raise ArtifactError(
            f"{path}: got layers {', '.join(found) or 'none'}; allowed: those of {WIDTHS['assigned']}/{like}, "
            f"{', '.join(expected) or 'none'} (dvc repro)"
        )
    return rows
