"""Which points there are: every method at every budget, as a valid params.yaml each.

A point's settings are what ``dvc exp run -S`` takes, so that each can be reproduced by the pipeline alone.
"""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairquant.allocate.info import ModelInfo
from fairquant.config import Config
from fairquant.config.load import check_groups, parse_config
from fairquant.config.yaml_core import read_yaml
from fairquant.errors import ConfigError, UserError
from fairquant.report.curves import Key
from scripts.curves import budgets, methods

TUNES = {"none": False, "equal": True}
"""--tune: quantize only, or fine-tune every method for the same epochs."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for; ``settings``: KEY=VALUE for every point."""

    methods: tuple[str, ...]
    budgets: tuple[float, ...]
    tunes: tuple[str, ...]
    settings: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise ``UserError`` for an unknown method, a budget out of reach, or a value given twice."""
        for option, values in (("--methods", self.methods), ("--budgets", self.budgets), ("--tune", self.tunes)):
            if not values or len(set(values)) < len(values):
                shown = " ".join(f"{value:g}" if isinstance(value, float) else value for value in values)
                raise UserError(f"{option}: got {shown or 'none'}; allowed: each value once")
        for name in self.methods:
            methods.get(name)
        for budget in self.budgets:
            budgets.exact(budget)


@dataclass(frozen=True)
class Point:
    """One point of one curve: its place, its settings, and the configuration they make."""

    key: Key
    settings: str
    config: Config


def plan(
    request: Request, *, task: str, params: Mapping[str, Any], info: ModelInfo, groups: Sequence[str]
) -> list[Point]:
    """Return the points of one classifier whose params.yaml holds ``params``.

    Raises ``ConfigError`` for a setting that does not exist or cannot be combined, naming the method.
    """
    given = dict(parse_setting(item) for item in request.settings)
    found = []
    for name in request.methods:
        for tune in request.tunes:
            for budget in request.budgets:
                own = methods.settings_of(name, info, budget, tuned=TUNES[tune])
                if own is not None:
                    found.append(_point(task, name, TUNES[tune], budget, params, {**given, **own}, groups))
    return found


def _point(
    task: str,
    method: str,
    tuned: bool,
    budget: float,
    params: Mapping[str, Any],
    settings: Mapping[str, Any],
    groups: Sequence[str],
) -> Point:
    try:
        config = parse_config(with_settings(params, settings))
        check_groups(config, list(groups))
    except ConfigError as error:
        raise ConfigError(f"{task}, {method}: {error}") from None
    return Point((task, config.seed, method, tuned, float(budget)), as_overrides(settings), config)


def parse_setting(text: str) -> tuple[str, Any]:
    """Read KEY=VALUE; the value is read as params.yaml's reader would.

    >>> parse_setting("data.group=[sex,age]"), parse_setting("debug=true")
    (('data.group', ['sex', 'age']), ('debug', True))
    """
    key, separator, value = text.partition("=")
    if not separator or not all(key.split(".")):
        raise UserError(f"--set: got {text!r}; allowed: KEY=VALUE with a key of params.yaml")
    if key == "seed":
        raise UserError(f"--set: got {text!r}; allowed: a workspace of that seed (its classifier was trained with it)")
    try:
        return key, read_yaml(value, source="--set")
    except ConfigError:
        raise UserError(f"--set: got {text!r}; allowed: KEY=VALUE with a value of YAML") from None


def with_settings(params: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of ``params`` with dotted ``settings`` applied; sections that are not there are made.

    >>> with_settings({"seed": 1, "assign": {"bits": [2]}}, {"assign.levels": [1.0], "budget.avg_bits": None})
    {'seed': 1, 'assign': {'bits': [2], 'levels': [1.0]}, 'budget': {'avg_bits': None}}
    """
    changed: dict[str, Any] = copy.deepcopy(dict(params))
    for key, value in settings.items():
        *sections, last = key.split(".")
        node = changed
        for name in sections:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{key}: {name} is no section; allowed: keys of params.yaml")
        node[last] = value
    return changed


def as_overrides(settings: Mapping[str, Any]) -> str:
    """Return ``settings`` as ``dvc exp run -S`` takes them, one after the other.

    >>> as_overrides({"budget.avg_bits": None, "assign.bits": [2, 4], "reducer": "max"})
    "budget.avg_bits=null 'assign.bits=[2,4]' reducer=max"
    """
    return shlex.join(f"{key}={_plain(value)}" for key, value in settings.items())


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)
