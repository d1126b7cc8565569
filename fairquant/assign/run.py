"""The assign stage's work: importance maps (and weights, where they are asked for) → widths for every unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from fairquant import plugins
from fairquant.allocate.bitmap import BitMap, unit_shape
from fairquant.allocate.info import ModelInfo
from fairquant.allocate.objective import Objective
from fairquant.allocate.protect import matching_layers, protected_widths, sensitive_widths
from fairquant.allocate.rank import Reduce, rank_units, reduced, reducer, totals
from fairquant.allocate.spending import Spent
from fairquant.assign.losses import (
    Floats,
    Increase,
    LayerLosses,
    Rounding,
    grids,
    increase_of,
    layer_losses,
    sensitivity,
)
from fairquant.assign.per_param import StreamedLayer
from fairquant.assign.spend import Problem, Solver, StreamedSolver, TableSolver, coupled, protected_losses
from fairquant.config import Config
from fairquant.errors import ArtifactError, ConfigError, UserError
from fairquant.importance.maps import ImportanceMaps

Weights = Mapping[str, Floats]
Memory = dict[tuple[str, Rounding, str], LayerLosses]
"""Predicted losses by layer, rounding, and the reducer where step sizes depend on it."""


@dataclass(frozen=True)
class Assignment:
    """Widths of every layer, in model order, and how they came about.

    ``spent`` and ``problem`` are there for allocators that spend a budget; ``with_steps`` gives widths the step sizes
    they would be quantized with, where those are chosen here. ``named`` are the layers that params.yaml holds at a
    width of their own; those held for their sensitivity stand in ``bits.held``.
    """

    bits: BitMap
    with_steps: Callable[[BitMap], BitMap]
    spent: Spent | None = None
    problem: Problem | None = None
    named: tuple[str, ...] = ()


def assign_bits(
    maps: ImportanceMaps, model_info: Mapping[str, Any], config: Config, weights: Callable[[], Weights] | None = None
) -> BitMap:
    """Return the widths alone of ``assign``."""
    return assign(maps, model_info, config, weights).bits


def assign(
    maps: ImportanceMaps,
    model_info: Mapping[str, Any],
    config: Config,
    weights: Callable[[], Weights] | None = None,
    *,
    memory: Memory | None = None,
) -> Assignment:
    """Return the bit-width of every unit of every quantizable layer, layers in model order.

    Shares of levels are shares of the unprotected units of the whole model; a budget is that of the whole model,
    protected layers included. ``weights`` returns the full-precision weights by layer; they are read where widths are
    chosen by predicted loss, or step sizes by importance, and must be given there. ``memory`` keeps predicted losses
    for further calls with the same maps and weights, for example under another budget. Raises ``UserError``: maps that
    are not of this model, NaN or infinity in one (the layer is named), a reducer that refuses the groups, a protection
    that matches nothing, a budget that cannot be met.
    """
    info = ModelInfo.from_json(model_info)
    _check_layers(maps, info)
    named = protected_widths(config.assign.protect, list(info.shapes), info.roles)
    sensitive = _sensitive(maps, info, config, named)
    task = _Task(maps, info, config, named | sensitive, weights, {} if memory is None else memory)
    allocator = plugins.load("allocator", config.allocator)
    problem: Problem | None = None
    spent: Spent | None = None
    if getattr(allocator, "SPENDS", False):
        problem = build_problem(task)
        spent = allocator.allocate(problem, config.assign)
        bits = problem.full(spent.bits)
    else:
        bits = _rank(task, allocator)
    bits = replace(task.with_steps(bits), held=tuple(sensitive))
    return Assignment(bits, task.with_steps, spent, problem, tuple(named))


def _sensitive(maps: ImportanceMaps, info: ModelInfo, config: Config, named: Mapping[str, int]) -> dict[str, int]:
    """Return layer → width of the layers held for their sensitivity."""
    protect = config.assign.protect
    if not protect.sensitive:
        return {}
    totals(maps)  # names the layer and group of NaN or infinity
    sums = {name: maps.layers[name].reshape(len(maps.groups), -1).sum(axis=1, dtype=np.float64) for name in info.shapes}
    return sensitive_widths(protect, sums, info.shapes, named)


@dataclass(frozen=True)
class _Task:
    """What one assignment is made from."""

    maps: ImportanceMaps
    info: ModelInfo
    config: Config
    held: Mapping[str, int]
    read_weights: Callable[[], Weights] | None
    memory: Memory
    known: dict[str, tuple[tuple[int, ...], Floats]] = field(default_factory=dict)
    """Step sizes found so far: layer → (widths, (rows, widths))."""

    @cached_property
    def weights(self) -> Weights:
        """The full-precision weights; ``ArtifactError`` where they are not those of the maps."""
        if self.read_weights is None:
            raise ValueError("weights: got None; allowed: a function, for predicted losses and weighted step sizes")
        found = self.read_weights()
        for name, shape in self.info.shapes.items():
            if name not in found or found[name].shape != shape:
                raise ArtifactError(f"weight of layer {name}: got none of shape {shape}; allowed: the model's weights")
        return found

    @property
    def scale_needs_importance(self) -> bool:
        """Whether the step sizes of ``quantize.scale`` are measured here, where the importance is."""
        return bool(getattr(plugins.load("scale", self.config.quantize.scale), "IMPORTANCE", False))

    @cached_property
    def reduce(self) -> Reduce:
        """The chosen reducer."""
        return reducer(self.maps, self.config)

    @property
    def _reducer(self) -> str:
        """The chosen reducer and its options, as text."""
        return f"{self.config.reducer} {self.config.options('reducer', self.config.reducer)}"

    @cached_property
    def increase(self) -> Increase:
        """What the maps' metric multiplies them by to predict a loss."""
        metric = self.maps.meta.get("metric")
        if metric not in plugins.names("importance"):
            raise ArtifactError(f"importance: got maps of metric {metric!r}; allowed: the importance stage's output")
        return increase_of(str(metric))

    def rounding(self, widths: Iterable[int]) -> Rounding:
        """Return how weights are rounded to ``widths``."""
        section = self.config.quantize
        granularity, scheme = self.config.granularity, section.weight_scheme
        return Rounding(section.scale, section.percentile, granularity, tuple(sorted(widths)), scheme)

    def grids(self, name: str, rounding: Rounding) -> tuple[Floats, Floats | None]:
        """Return a layer's step sizes (rows, widths), and zero points where grids are asymmetric."""
        weight, weighed = self.weights[name], None
        if self.scale_needs_importance:
            importance = np.maximum(reduced(self.reduce, self.maps, name), 0)  # a signed reducer's negative is "none"
            weighed = sensitivity(self.increase, importance, weight)
        return grids(weight, rounding, weighed)

    def losses(self, name: str, widths: Iterable[int]) -> LayerLosses:
        """Return a layer's predicted losses at ``widths``."""
        rounding = self.rounding(widths)
        key = (name, rounding, self._reducer if self.scale_needs_importance else "")
        if key not in self.memory:
            steps, zeros = self.grids(name, rounding)
            weight, maps, increase = self.weights[name], self.maps.layers[name], self.increase
            try:
                self.memory[key] = layer_losses(weight, maps, rounding, increase, steps, zeros)
            except UserError as error:
                raise UserError(f"layer {name}: {error}") from None
        self.known[name] = (rounding.widths, self.memory[key].steps)
        return self.memory[key]

    def with_steps(self, bits: BitMap) -> BitMap:
        """Return ``bits`` with the step sizes of their widths; as they are where those are measured when quantizing."""
        if not self.scale_needs_importance:
            return bits
        return BitMap(bits.granularity, bits.layers, {name: self._table(name, bits) for name in bits.layers})

    def _table(self, name: str, bits: BitMap) -> Floats:
        """Return the step sizes (rows, columns) of one layer: its width's, or one column per width present."""
        present = list(bits.counts(name))
        widths, steps = self.known.get(name, ((), None))
        if steps is None or not set(present) <= set(widths):
            widths, (steps, _) = tuple(present), self.grids(name, self.rounding(present))
        if bits.granularity == "per_param" and len(present) > 1:
            return np.ascontiguousarray(steps[:, np.searchsorted(widths, present)])
        index = np.searchsorted(widths, bits.layers[name].reshape(-1)[: len(steps)])
        return np.take_along_axis(steps, index[:, None], axis=1)


def _rank(task: _Task, allocator: ModuleType) -> BitMap:
    """Let an allocator choose by the order of importance."""
    free = {name: shape for name, shape in task.info.shapes.items() if name not in task.held}
    units = rank_units(task.maps, free, task.config)
    bits = dict(units.scatter(allocator.allocate(units.importance, units.sizes, task.config.assign)).layers)
    granularity = task.config.granularity
    for name, width in task.held.items():
        bits[name] = np.full(unit_shape(granularity, task.info.shapes[name]), width, dtype=np.uint8)
    widths = {name: bits[name] for name in task.info.shapes}
    return BitMap(granularity, widths, scheme=task.config.quantize.weight_scheme)


def build_problem(task: _Task) -> Problem:
    """Predict the losses of every free unit and bring them before a solver for the granularity."""
    config, section = task.config, task.config.assign.optimal
    objective = _objective(task)  # first: it names the layer and group of NaN or infinity
    offset = protected_losses({name: task.losses(name, [width]) for name, width in task.held.items() if width != 32},
                              len(task.maps.groups))  # fmt: skip
    free = [name for name in task.info.shapes if name not in task.held]
    solver: Solver = _streamed(task, free, offset) if config.granularity == "per_param" else _table(task, free, offset)
    return Problem(
        solver=solver,
        objective=objective,
        budget=config.budget,
        info=task.info,
        granularity=config.granularity,
        widths=section.bits,
        held=task.held,
        scheme=config.quantize.weight_scheme,
    )


def _table(task: _Task, free: list[str], offset: Any) -> TableSolver:
    section = task.config.assign.optimal
    units = {name: math.prod(unit_shape(task.config.granularity, task.info.shapes[name])) for name in free}
    blocks = coupled(
        units, lambda pattern: matching_layers("assign.optimal.couple", pattern, free, task.info.roles), section.couple
    )
    return TableSolver({name: task.losses(name, section.bits) for name in free}, blocks, offset)


def _streamed(task: _Task, free: list[str], offset: Any) -> Solver:
    if task.config.assign.optimal.couple:
        lists = [list(names) for names in task.config.assign.optimal.couple]
        raise ConfigError(
            f"assign.optimal.couple: got {lists} with granularity per_param; allowed: [] (single weights do not share "
            "widths)"
        )
    rounding = task.rounding(task.config.assign.optimal.bits)
    measured = {name: task.grids(name, rounding) for name in free}
    layers = [
        StreamedLayer(
            name=name,
            weight=task.weights[name].reshape(len(task.weights[name]), -1),
            maps=task.maps.layers[name].reshape(len(task.maps.groups), len(task.weights[name]), -1),
            steps=measured[name][0],
            zeros=measured[name][1],
        )
        for name in free
    ]
    return StreamedSolver(layers, rounding.widths, task.increase, offset)


def _objective(task: _Task) -> Objective:
    """Return the objective over groups' totals that belongs to the reducer."""
    plugin = plugins.load("reducer", task.config.reducer)
    options = task.config.options("reducer", task.config.reducer)
    if hasattr(plugin, "check_groups"):
        plugin.check_groups(options, task.maps.groups)
    cap, scale = plugin.objective(options, totals(task.maps))
    return Objective.tail(len(task.maps.groups), cap, scale)


def _check_layers(maps: ImportanceMaps, info: ModelInfo) -> None:
    """Raise ``ArtifactError`` unless the maps are of the model's layers."""
    for name in sorted(set(info.shapes) ^ set(maps.layers)):
        where = "a map for" if name in maps.layers else "no map for"
        raise ArtifactError(f"importance: got {where} layer {name}; allowed: one map for each layer of the model")
    for name, shape in info.shapes.items():
        if maps.layers[name].shape != (len(maps.groups), *shape):
            raise ArtifactError(
                f"importance of layer {name}: got shape {maps.layers[name].shape}; "
                f"allowed: {(len(maps.groups), *shape)} (groups, then the weight's shape)"
            )
