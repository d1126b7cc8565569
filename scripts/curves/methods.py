"""The methods compared: which settings of params.yaml make each of them, and how it is told its budget. Data, not code.

``levels_*`` is the published allocation (FairQuant, arXiv 2602.23192: grape importance, three widths by rank, absmax
step sizes); ``optimal_*`` minimises the predicted loss within the byte limit; ``ours`` is the preset. ``*_mse`` are the
baselines with the step sizes that ``optimal_*`` has, so that allocation and step size can be told apart.
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
    """``settings`` of every point, those of the tuned ones, and what a budget adds (None: there is no such point)."""

    settings: Settings
    budget: Budget
    tuned: Settings = field(default_factory=lambda: TUNED)


def _uniform(scale: str) -> Method:
    fixed = {"allocator": "uniform", "importance_metric": "grape", "reducer": "mean"}
    return Method({**fixed, "granularity": "per_channel", "quantize.scale": scale}, budgets.uniform)


def _levels(reducer: str, scale: str) -> Method:
    fixed = {"allocator": "levels", "importance_metric": "grape", "reducer": reducer, "assign.level_unit": "params"}
    return Method({**fixed, "granularity": "per_channel", "quantize.scale": scale}, budgets.levels)


def _optimal(reducer: str, scale: str = "mse", tuned: Settings = TUNED) -> Method:
    fixed = {"allocator": "optimal", "importance_metric": "fisher", "reducer": reducer}
    return Method({**fixed, "granularity": "per_channel", "quantize.scale": scale}, budgets.packed, tuned)


def _ours() -> Method:
    preset = presets.PRESETS.get("ours")
    if preset is None:
        protecting = {"quantize.fairness_loss": "compression_drop", "quantize.fairness_weight": 1}
        return _optimal("max", "weighted", {"quant_mode": "fair_static_qat", **protecting})
    return Method(preset.settings, budgets.packed, {})


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "uniform": _uniform("absmax"),
        "uniform_mse": _uniform("mse"),
        **{f"levels_{reducer}": _levels(reducer, "absmax") for reducer in REDUCERS},
        **{f"levels_{reducer}_mse": _levels(reducer, "mse") for reducer in REDUCERS},
        **{f"optimal_{reducer}": _optimal(reducer) for reducer in REDUCERS},
        "ours": _ours(),
    }
)
"""Every method by name, in the order of the tables."""


def get(name: str) -> Method:
    """Return the method ``name``; an unknown name raises ``UserError``."""
    if name not in METHODS:
        raise UserError(f"--methods: got {name!r}; allowed: {' | '.join(METHODS)}")
    return METHODS[name]


def settings_of(name: str, info: ModelInfo, budget: float, *, tuned: bool) -> Settings | None:
    """Return the settings of one point by dotted key of params.yaml; None where the method has no such budget."""
    method = get(name)
    spent = method.budget(info, budget)
    if spent is None:
        return None
    return {**method.settings, **(method.tuned if tuned else UNTUNED), **spent}
