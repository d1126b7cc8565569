"""Which points an analysis has: models × methods × widths, then what is mitigated, as a valid params.yaml each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairquant.config.load import check_groups, parse_config
from fairquant.errors import ConfigError, UserError
from fairquant.report.analysis import JOIN
from scripts.analysis import methods
from scripts.curves.points import Point, as_overrides, parse_setting, with_settings
from scripts.curves.workspace import Workspace

PHASES = ("baseline", "compression", "mitigation", "analysis")
LOWEST, HIGHEST = 1, 16


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        methods: ways of compressing.
        bits: widths.
        base: the method that is mitigated.
        mitigations: fairness losses and post-processors.
        settings: KEY=VALUE for every point.
        phases: of ``PHASES``.
    """

    methods: tuple[str, ...]
    bits: tuple[int, ...]
    base: str
    mitigations: tuple[str, ...]
    settings: tuple[str, ...] = ()
    phases: tuple[str, ...] = PHASES

    def check(self) -> None:
        """Raise ``UserError`` for a name or width that is not allowed, or a value given twice."""
        for option, values in (("--methods", self.methods), ("--bits", self.bits), ("--phases", self.phases)):
            if not values or len(set(values)) < len(values):
                raise UserError(f"{option}: got {' '.join(map(str, values)) or 'none'}; allowed: each value once")
        for name in self.methods:
            methods.check(name)
        methods.check(self.base, option="--mitigate")
        known = (*methods.losses(), *methods.postprocessors())
        for name in self.mitigations:
            if name not in known or self.mitigations.count(name) > 1:
                raise UserError(f"--mitigations: got {name!r}; allowed: each once of {' | '.join(known)}")
            if name in methods.losses() and not methods.is_tuned(self.base):
                raise UserError(
                    f"--mitigate: got {self.base!r} with the loss {name}, which is trained; allowed: a method that is "
                    "fine-tuned (qat, or …_ft), or --mitigations of post-processors alone"
                )
        for bits in self.bits:
            if not LOWEST <= bits <= HIGHEST:
                raise UserError(f"--bits: got {bits}; allowed: whole numbers from {LOWEST} to {HIGHEST}")
        for text in self.settings:
            parse_setting(text)

    @property
    def names(self) -> list[str]:
        """The methods of the phases asked for, in order; mitigation brings the method it is added to."""
        found = list(self.methods) if "compression" in self.phases else []
        if "mitigation" in self.phases and self.mitigations:
            found += [self.base, *(f"{self.base}{JOIN}{name}" for name in self.mitigations)]
        return list(dict.fromkeys(found))


def plan(request: Request, workspace: Workspace) -> list[Point]:
    """Return the points of one classifier.

    Raises ``ConfigError`` for a setting that does not exist or cannot be combined, naming the method.
    """
    given = dict(map(parse_setting, request.settings))
    found = []
    for name in request.names:
        for bits in request.bits:
            own = methods.settings_of(name, workspace.info, bits, given)
            if own is not None:
                found.append(_point(workspace, name, bits, own))
    return found


def _point(workspace: Workspace, name: str, bits: int, settings: Mapping[str, Any]) -> Point:
    where = f"{workspace.task}, {name}, {bits} bits"
    try:
        config = parse_config(with_settings(workspace.params, settings))
        check_groups(config, list(workspace.store.group_names))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    key = workspace.task, config.seed, name, methods.is_tuned(name), float(bits)
    return Point(key, as_overrides(settings), config)


def require_one_data_set(workspaces: Sequence[Workspace]) -> None:
    """Raise ``UserError`` where workspaces hold other data, or two hold the same model and seed."""
    seen: dict[tuple[str, int], Workspace] = {}
    for workspace in workspaces:
        first = workspaces[0]
        if workspace.store.meta["checksum"] != first.store.meta["checksum"]:
            raise UserError(
                f"--workspaces: got {first.path} and {workspace.path} with other data; allowed: the same prepared data"
            )
        key = workspace.task, workspace.config.seed
        if key in seen:
            raise UserError(
                f"--workspaces: got {seen[key].path} and {workspace.path}, both {key[0]} with seed {key[1]}; allowed: "
                "one of each, or names for them (MODEL=FOLDER)"
            )
        seen[key] = workspace
