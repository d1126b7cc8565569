"""Which experiments a suite consists of: one per method and seed, validated before anything is queued."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairquant import presets
from fairquant.config import Config
from fairquant.config.load import check_groups, parse_config
from fairquant.config.yaml_core import read_yaml
from fairquant.errors import ConfigError, UserError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Task:
    """One experiment: its name and what ``dvc exp run -S`` gets."""

    name: str
    method: str
    seed: int
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A validated suite.

    ``params``: method → params.yaml of its runs, but for ``seed``; ``reasons``: method → why it cannot run here.
    """

    name: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: tuple[str, ...]
    params: Mapping[str, Mapping[str, Any]]
    reasons: Mapping[str, str]

    def task(self, method: str, seed: int) -> Task:
        """Return the experiment of ``method`` at ``seed``; a preset's own settings come last and win."""
        overrides = (*self.settings, *presets.get(method).overrides, f"seed={seed}")
        return Task(f"{self.name}-{method}-s{seed}", method, seed, overrides)

    def waves(self, reasons: Mapping[str, str]) -> list[list[Task]]:
        """Return the experiments in order: the first of each seed, which computes what the rest take from the cache.

        Methods in ``reasons`` are left out.
        """
        methods = [name for name in self.methods if name not in reasons]
        first = [self.task(name, seed) for seed in self.seeds for name in methods[:1]]
        rest = [self.task(name, seed) for seed in self.seeds for name in methods[1:]]
        return [wave for wave in (first, rest) if wave]

    def expected(self, experiment: str) -> dict[str, Any] | None:
        """Return the params.yaml an experiment of this name has to have; None where it is not one of this suite."""
        match = re.fullmatch(rf"{re.escape(self.name)}-(\w+)-s(\d+)", experiment)
        if match is None or match[1] not in self.params:
            return None
        return {**self.params[match[1]], "seed": int(match[2])}

    def refused(self, groups: Sequence[str]) -> dict[str, str]:
        """Return method → reason of those that cannot work with ``groups``."""
        reasons = dict(self.reasons)
        for method in self.methods:
            if method not in reasons:
                try:
                    check_groups(parse_config(dict(self.params[method])), list(groups))
                except ConfigError as error:
                    reasons[method] = _reason(error)
        return reasons


def make_plan(
    name: str, methods: Sequence[str], seeds: Sequence[int], settings: Sequence[str], params: str
) -> tuple[Plan, Config]:
    """Return the suite of ``methods`` × ``seeds`` on params.yaml's text ``params`` and the configuration all share.

    Raises ``UserError`` for a mistake that concerns every run; what a single method cannot do becomes its reason.
    """
    _check(name, methods, seeds, settings)
    config = parse_config(apply(params, settings))
    per_method, reasons = {}, {}
    for method in methods:
        per_method[method] = apply(params, [*settings, *presets.get(method).overrides])
        try:
            parse_config(per_method[method])
        except ConfigError as error:
            reasons[method] = _reason(error)
    return Plan(name, tuple(methods), tuple(seeds), tuple(settings), per_method, reasons), config


def _reason(error: ConfigError) -> str:
    return str(error).removeprefix("params.yaml: ")


def _check(name: str, methods: Sequence[str], seeds: Sequence[int], settings: Sequence[str]) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(f"--name: got {name!r}; allowed: letters, digits, _ and - (it begins experiments' names)")
    fixed = [set(presets.get(method).settings) for method in methods]
    for option, values in (("--methods", methods), ("--seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"{option}: got {' '.join(map(str, values)) or 'none'}; allowed: each value once")
    if min(seeds) < 0:
        raise ConfigError(f"--seeds: got {min(seeds)}; allowed: whole numbers from 0")
    for setting in settings:
        key, separator, _ = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set: got {setting!r}; allowed: KEY=VALUE with a key of params.yaml")
        if key == "seed":
            raise ConfigError(f"--set: got {setting!r}; allowed: --seeds")
        if all(key in keys for keys in fixed):
            raise ConfigError(f"--set: got {setting!r}, which every method fixes; allowed: settings methods leave open")


def apply(params: str, settings: Sequence[str]) -> dict[str, Any]:
    """Return the mapping in params.yaml's text with KEY=VALUE ``settings`` applied, exactly as ``dvc exp run -S`` does.

    Raises ``UserError`` for a key params.yaml does not hold or a value that cannot be read.
    """
    from dvc.exceptions import DvcException  # type: ignore[import-untyped]
    from dvc.utils.hydra import apply_overrides  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "params.yaml")
        path.write_text(params, encoding="utf-8")
        try:
            apply_overrides(str(path), list(settings))
        except DvcException as error:
            cause = str(error.__cause__ or error).splitlines()[0]
            raise UserError(f"--set: {cause}; allowed: KEY=VALUE with a key of params.yaml") from None
        values = read_yaml(path.read_text(encoding="utf-8"), source="params.yaml")
    return dict(values)
