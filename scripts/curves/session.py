"""One trained classifier, loaded once: its importance maps and predictions are shared by all points of its curves."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairquant import plugins
from fairquant.assign.run import Memory
from fairquant.config import Config
from fairquant.cost.summary import summarise_bits
from fairquant.evaluate.gaps import large_enough
from fairquant.evaluate.loss import excessive_loss
from fairquant.evaluate.report import compare_split, evaluation
from fairquant.importance.maps import ImportanceMaps
from fairquant.predictions import Predictions
from fairquant.report.curves import ByGroup, CurveRow
from scripts.curves.assigning import Assigned, assign
from scripts.curves.cache import cached_maps
from scripts.curves.points import Point
from scripts.curves.workspace import MODEL, Workspace

SPLITS = ("val", "test")


class Session:
    """Measures points of one workspace. ``folder`` keeps importance maps and interrupted fine-tuning."""

    def __init__(self, workspace: Workspace, config: Config, folder: Path) -> None:
        """Load the classifier and predict both splits in full precision, on the device that ``config`` names."""
        from fairquant.devices import resolve_device, seed_everything
        from fairquant.models.io import load_description, load_model

        self.workspace, self.folder = workspace, folder
        self.device = resolve_device(config.device)
        self.info = load_description(workspace.path / MODEL)
        self.model, _ = load_model(workspace.path / MODEL)
        self._maps: dict[str, ImportanceMaps] = {}
        self._memories: dict[int, Memory] = {}
        seed_everything(0)
        self.before = self._predict(copy.deepcopy(self.model), config)

    def measure(self, point: Point) -> CurveRow:
        """Allocate, quantize, fine-tune where asked, and evaluate one point.

        Raises ``UserError`` where the settings cannot be met on this model (a budget below the smallest possible).
        """
        from fairquant.devices import seed_everything

        maps = self.maps(point.config)
        start = time.perf_counter()
        memory = self._memories.setdefault(id(maps), {})
        assigned = assign(point.config, maps, self.info, self.model, self.device, memory=memory)
        model = self._quantize(point.config, assigned)
        seed_everything(0)
        after = self._predict(model, point.config)
        return self._row(point, assigned, model, after, start)

    def maps(self, config: Config) -> ImportanceMaps:
        """Return the importance that ``config`` asks for, measured as the importance stage does."""
        section = config.importance
        options = config.options("importance", config.importance_metric)
        key = {
            "classifier": self.workspace.checksum,
            "data": self.workspace.store.meta["checksum"],
            "metric": config.importance_metric,
            "options": options.model_dump(mode="json"),
            "section": section.model_dump(mode="json", exclude={"metrics"}),
            "device": self.device.type,
            "precision": config.precision,
            "seed": config.seed,
        }
        name = repr(key)
        if name not in self._maps:
            self._maps[name] = cached_maps(self.folder, key, lambda: self._measure_importance(config))
        return self._maps[name]

    def _measure_importance(self, config: Config) -> ImportanceMaps:
        from fairquant.devices import seed_everything
        from fairquant.importance.measure import measure_importance

        section, metric = config.importance, config.importance_metric
        seed_everything(config.seed)
        return measure_importance(
            copy.deepcopy(self.model),
            self.workspace.store,
            metric=metric,
            options=config.options("importance", metric),
            by=section.by,
            normalize=section.normalize,
            batch_size=section.batch_size,
            samples_per_group=section.samples_per_group,
            device=self.device,
            precision=config.precision,
            seed=config.seed,
        )

    def _quantize(self, config: Config, assigned: Assigned) -> Any:
        from fairquant.devices import seed_everything
        from fairquant.modes import QuantizeJob

        seed_everything(config.seed)
        model = copy.deepcopy(self.model)
        job = QuantizeJob.of(
            config, model=model, store=self.workspace.store, bits=assigned.bits, roles=self.info["roles"]
        )
        job = dataclasses.replace(job, checkpoint_dir=self.folder / "resume")
        return plugins.load("mode", config.quant_mode).quantize(job).model

    def _predict(self, model: Any, config: Config) -> Predictions:
        from fairquant.train.predict import predict_splits

        size = config.evaluate.batch_size
        return predict_splits(
            model, self.workspace.store, SPLITS, batch_size=size, device=self.device, precision=config.precision
        )

    def _row(self, point: Point, assigned: Assigned, model: Any, after: Predictions, start: float) -> CurveRow:
        from fairquant.quantize.attach import bitmap_of

        task, seed, method, tuned, budget = point.key
        cost = summarise_bits(bitmap_of(model), self.info)
        values = measured(self.before, after, point.config)
        return CurveRow(
            task=task,
            seed=seed,
            method=method,
            tuned=tuned,
            budget=budget,
            settings=point.settings,
            classifier=self.workspace.classifier,
            packed_mb=cost["size"]["packed_mb"],
            fp32_mb=cost["size"]["fp32_mb"],
            avg_bits=cost["avg_bits"]["by_parameter"],
            predicted=dict(assigned.predicted),
            seconds=round(time.perf_counter() - start, 3),
            **values,
        )


def measured(before: Predictions, after: Predictions, config: Config) -> dict[str, Any]:
    """Return the columns of a row that come from predictions, by the definitions of metrics/evaluate.json."""
    section, groups = config.evaluate, before.groups
    result = evaluation(before, after, section=section)
    counted = large_enough(before["test"].groups, groups=groups, minimum=section.min_group_size)
    val = compare_split(before["val"], after["val"], classes=before.classes, groups=groups, parity=False,
                        positive_class=section.positive_class, counted=counted)  # fmt: skip
    losses = {split: excessive_loss(before[split], after[split], groups=groups)["group"] for split in SPLITS}
    values: dict[str, Any] = {}
    for split, tree in (("test", result), ("val", val)):
        for when in ("before", "after"):
            values[f"{split}_overall_{when}"] = tree["overall"][when]
            values[f"{split}_worst_{when}"] = tree["worst_group"][when]
            values[f"{split}_group_{when}"] = {name: row[when] for name, row in tree["group"].items()}
        values[f"{split}_loss_change"] = losses[split]
    values |= {"test_worst_group": result["quantized"]["worst_group"] or ""}
    values |= {"test_worst_group_before": _worst_before(result["group"])}
    for name, key in (("gap", "max_minus_min"), ("eodd", "eodd")):
        for when in ("before", "after"):
            values[f"test_{name}_{when}"] = result.get("gap", {}).get(when, {}).get(key)
    values["harmed"] = tuple(name for name, row in result["harm"].items() if row["harmed"])
    interval = result.get("interval", {})
    for name, key in (("overall", "overall"), ("worst", "worst_group")):
        ends = interval.get(key, {}).get("change", {})
        values |= {f"{name}_change_{end}": ends.get(end) for end in ("low", "high")}
    return values


def _worst_before(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name of the counted group of lowest accuracy before, the first of equals; "" where none is defined."""
    known: ByGroup = {name: row["before"] for name, row in rows.items() if row["counted"] and row["before"] is not None}
    return min(known, key=lambda name: float(known[name] or 0.0)) if known else ""
