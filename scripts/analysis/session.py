"""Measures points as ``scripts.curves`` does, and keeps what an analysis needs besides: predictions and maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fairquant.errors import UserError
from fairquant.predictions import Predictions
from fairquant.report.analysis import JOIN
from fairquant.report.analysis_tests import Point as Place
from fairquant.report.curves import CurveRow
from scripts.analysis.methods import postprocessors
from scripts.analysis.mitigate import postprocessed
from scripts.curves.assigning import Assigned
from scripts.curves.points import Point
from scripts.curves.session import Session


class KeepingSession(Session):
    """A session whose points leave their predictions in ``folder``/predictions."""

    def measure_any(self, point: Point, rows: Sequence[CurveRow]) -> CurveRow:
        """Measure ``point``; what is post-processed is made of its base's row among ``rows``, and its predictions.

        Raises ``UserError`` where the settings cannot be met on this model, or the base is not measured.
        """
        base, _, mitigation = point.key[2].partition(JOIN)
        if mitigation not in postprocessors():
            return self.measure(point)
        row = next((row for row in rows if row.key == (*point.key[:2], base, *point.key[3:])), None)
        place = place_of((*point.key[:2], base, *point.key[3:]))
        if row is None or not predictions_path(self.folder, place).exists():
            raise UserError(f"--mitigations: got {mitigation} without a measured {base}; allowed: --redo {base}")
        after = Predictions.load(predictions_path(self.folder, place))
        made = postprocessed(mitigation, row, after, point.config)
        return replace(made, method=point.key[2], settings=point.settings)

    def _row(self, point: Point, assigned: Assigned, model: Any, after: Predictions, start: float) -> CurveRow:
        after.save(predictions_path(self.folder, place_of(point.key)))
        return super()._row(point, assigned, model, after, start)


def place_of(key: tuple[str, int, str, bool, float]) -> Place:
    """Return what predictions are kept under: model, seed, method, width."""
    task, seed, method, _, bits = key
    return task, seed, method, bits


def predictions_path(folder: Path, place: Place) -> Path:
    """Return where the predictions of a point are.

    >>> predictions_path(Path("cache"), ("vit/tiny", 0, "qat+gap", 4.0)).as_posix()
    'cache/predictions/vit_tiny-s0-qat+gap-4.safetensors'
    """
    model, seed, method, bits = place
    return folder / "predictions" / f"{model.replace('/', '_')}-s{seed}-{method}-{bits:g}.safetensors"


def kept_predictions(folder: Path, rows: Sequence[CurveRow]) -> dict[Place, Predictions]:
    """Return the predictions of ``rows``; those of points without a file are left out."""
    found = {}
    for row in rows:
        path = predictions_path(folder, place_of(row.key))
        if path.exists():
            found[place_of(row.key)] = Predictions.load(path)
    return found
