"""What the assign stage writes beside the widths: metrics, the reason for each layer's widths, and the curve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairquant import artifacts
from fairquant.allocate.info import ModelInfo
from fairquant.allocate.spending import Spent
from fairquant.assign.explain import Measure, Row, curve, layer_rows
from fairquant.assign.losses import Floats
from fairquant.assign.run import Assignment
from fairquant.config import Config
from fairquant.cost.summary import summarise_bits
from fairquant.errors import ArtifactError
from fairquant.evaluate.summary import metric_keys
from fairquant.importance.maps import ImportanceMaps

CURVE_COLUMNS = ("budget", "avg_bits", "packed_mb", "group", "predicted", "measured", "accuracy")


@dataclass(frozen=True)
class Reports:
    """``metrics`` as nested JSON, ``layers`` one row per layer, ``curve`` one row per budget and group."""

    metrics: dict[str, Any]
    layers: list[Row]
    curve: list[Row]


def read_weights(path: str | Path, model_info: Mapping[str, Any]) -> dict[str, Floats]:
    """Return the weights of the quantizable layers in a model file, by layer.

    Raises ``ArtifactError`` where the file lacks one.
    """
    arrays, _ = artifacts.read_tensors(path)
    absent = [name for name in model_info["layers"] if f"{name}.weight" not in arrays]
    if absent:
        raise ArtifactError(f"{path}: got no weight of layer {absent[0]}; allowed: the model of models/pretrained.json")
    return {name: arrays[f"{name}.weight"] for name in model_info["layers"]}


def describe(
    assignment: Assignment, maps: ImportanceMaps, model_info: Mapping[str, Any], config: Config, model: str | Path
) -> Reports:
    """Explain ``assignment``; the curve is drawn where a budget was spent, and measured where params.yaml asks for it.

    The chosen allocation itself stands in the curve as a row of budget "chosen". Protected layers, where there are any,
    are listed by the reason for it.
    """
    info = ModelInfo.from_json(model_info)
    metrics = summarise_bits(assignment.bits, model_info)
    protected = {"named": list(assignment.named), "sensitive": list(assignment.bits.held)}
    if any(protected.values()):
        metrics["protected"] = protected
    rows: list[Row] = []
    if assignment.spent is not None:
        metrics["predicted"] = _predicted(assignment.spent, maps.groups)
        section = config.assign.explain
        measure = _validation(model, config, maps) if section.measure else None
        # Per parameter every point is a pass over all weights for minutes: the chosen one alone.
        budgets = section.budgets if config.granularity != "per_param" else ()
        rows = list(curve(assignment, budgets, maps.groups, measure))
    return Reports(metrics, layer_rows(maps, info, assignment), rows)


def _predicted(spent: Spent, groups: tuple[str, ...]) -> dict[str, Any]:
    """Return objective, bound and gap, and per group the predicted loss and its weight in the objective."""
    return {
        "objective": spent.value,
        "bound": spent.bound,
        "gap": spent.gap,
        "loss": dict(zip(metric_keys(groups), spent.totals.tolist(), strict=True)),
        "weight": dict(zip(metric_keys(groups), spent.group_weights.tolist(), strict=True)),
        "price": dict(spent.prices),
    }


def _validation(path: str | Path, config: Config, maps: ImportanceMaps) -> Measure:
    """Return what measures allocations on the validation split; raises ``ArtifactError`` for maps of other groups."""
    from fairquant.assign.measure import Validation
    from fairquant.data.store import Store
    from fairquant.devices import resolve_device
    from fairquant.models.io import load_model

    store = Store.open()
    marks = {"group": tuple(store.group_names), "class": tuple(store.classes)}
    by = next((name for name, names in marks.items() if names == tuple(maps.groups)), None)
    if by is None:
        raise ArtifactError(f"importance: got the groups {', '.join(maps.groups)}; allowed: those of data/prepared")
    model, _ = load_model(path)
    return Validation(model, store, config, resolve_device(config.device), by=by)
