"""The methods compared: which settings of params.yaml make each of them, and how it is told its budget. Data, not code.

``levels_*`` is the published allocation (FairQuant, arXiv 2602.23192: grape importance, three widths by rank, absmax
step sizes); ``optimal_*`` minimises the predicted loss within the byte limit; ``ours`` is the preset. ``*_mse`` are the
baselines with the step sizes that ``optimal_*`` has, and ``*_corrected`` have batch norm and biases corrected
besides, as ``ours`` has, so that what comes from allocation, step sizes and correction can be told apart. ``ours_*``
differ from ``ours`` in what fine-tuning minimises alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from fairquant import presets
from fairquant.allocate.info import ModelInfo
from fairquant.errors import UserError
from scripts.curves import budgets

Settings = Mapping[str, Any]
Budget = Callable[[ModelInfo, float], Settings | None]

REDUCERS = ("max", "mean", "cvar", "balanced")
CORRECTED = 2048
BUDGETS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)
UNTUNED: Settings = {"quant_mode": "fair_static"}
TUNED: Settings = {
    "quant_mode": "fair_static_qat",
    "quantize.fairness_loss": "none",
    "quantize.fairness_weight": 0,
    "quantize.distill.weight": 0,
}


@dataclass(frozen=True)
class Method:
    """``settings`` of every point, those of the tuned ones, and what a budget adds (None: there is no such point).

    ``only_tuned``: without fine-tuning it would be another method again.
    """

    settings: Settings
    budget: Budget
    tuned: Settings = field(default_factory=lambda: TUNED)
    only_tuned: bool = False


def _rounded(scale: str, images: int) -> Settings:
    return {"granularity": "per_channel", "quantize.scale": scale, "quantize.correction_images": images}


def _uniform(scale: str, images: int = 0) -> Method:
    fixed = {"allocator": "uniform", "importance_metric": "grape", "reducer": "mean"}
    return Method({**fixed, **_rounded(scale, images)}, budgets.uniform)


def _levels(reducer: str, scale: str, images: int = 0) -> Method:
    fixed = {"allocator": "levels", "importance_metric": "grape", "reducer": reducer, "assign.level_unit": "params"}
    return Method({**fixed, **_rounded(scale, images)}, budgets.levels)


def _optimal(reducer: str, scale: str = "mse", images: int = 0, tuned: Settings = TUNED) -> Method:
    fixed = {"allocator": "optimal", "importance_metric": "fisher", "reducer": reducer}
    return Method({**fixed, **_rounded(scale, images)}, budgets.packed, tuned)


def _ours(tuned: Settings, *, only_tuned: bool = True) -> Method:
    return Method(presets.get("ours").settings, budgets.packed, tuned, only_tuned)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "uniform": _uniform("absmax"),
        "uniform_mse": _uniform("mse"),
        **{f"levels_{reducer}": _levels(reducer, "absmax") for reducer in REDUCERS},
        **{f"levels_{reducer}_mse": _levels(reducer, "mse") for reducer in REDUCERS},
        "uniform_corrected": _uniform("mse", CORRECTED),
        **{f"levels_{reducer}_corrected": _levels(reducer, "mse", CORRECTED) for reducer in REDUCERS},
        **{f"optimal_{reducer}": _optimal(reducer) for reducer in REDUCERS},
        "optimal_max_corrected": _optimal("max", "mse", CORRECTED),
        "optimal_max_weighted": _optimal("max", "weighted"),
        "ours": _ours({}, only_tuned=False),
        "ours_plain": _ours(TUNED),
        "ours_distilled": _ours({"quantize.fairness_weight": 0}),
        "ours_drop": _ours({"quantize.distill.weight": 0}),
        "ours_dro": _ours({"quantize.fairness_loss": "group_dro"}),
    }
)
"""Every method by name, in the order of the tables."""
PUBLISHED = ("uniform", *(f"levels_{reducer}" for reducer in REDUCERS))
"""What the others are held against: uniform and rank-based widths with absmax step sizes."""


def get(name: str) -> Method:
    """Return the method ``name``; an unknown name raises ``UserError``."""
    if name not in METHODS:
        raise UserError(f"--methods: got {name!r}; allowed: {' | '.join(METHODS)}")
    return METHODS[name]


def settings_of(name: str, info: ModelInfo, budget: float, *, tuned: bool) -> Settings | None:
    """Return the settings of one point by dotted key of params.yaml; None where the method has no such budget."""
    method = get(name)
    spent = method.budget(info, budget)
    if spent is None or (method.only_tuned and not tuned):
        return None
    return {**method.settings, **(method.tuned if tuned else UNTUNED), **spent}
