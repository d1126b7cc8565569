"""The per-class study [B]: PTQ and QAT at WbAb, on fair and unfair training sets: ``python -m scripts.study --help``.

Every workspace of ``scripts.curves`` serves. On its own training set (``as_is``) the classifier that is there is
quantized; for ``fair`` and ``unfair`` (``scripts.analysis.skew``) one is trained for each, with the workspace's own
settings. Rows, φ and tables are those of ``fairquant.report.analysis_study``; see docs/analysis.md.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fairquant.artifacts import write_text
from fairquant.config.load import parse_config
from fairquant.errors import ConfigError, UserError
from fairquant.evaluate.gaps import each_warning_once
from fairquant.predictions import Predictions
from fairquant.report.analysis_study import (
    Key,
    PointSummary,
    StudyRow,
    by_point,
    header_line,
    point_rows,
    read_rows,
    row_line,
)
from fairquant.report.cells import percent
from fairquant.report.curves import CurveRow
from scripts import command
from scripts.analysis import methods
from scripts.analysis.skew import AS_IS, BY, DATA
from scripts.analysis.trained import Skew, derive
from scripts.command import Say
from scripts.curves.assigning import Assigned
from scripts.curves.points import Point, as_overrides, parse_setting, with_settings
from scripts.curves.session import Session
from scripts.curves.workspace import Workspace, open_all

WAYS = {"ptq": "ptq_static", "qat": "qat"}
"""Name in the study → method of ``scripts.analysis``."""
CSV = "study.csv"
LOWEST, HIGHEST = 2, 16


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.study", description="accuracy and φ of each class, PTQ and QAT; see docs/analysis.md"
    )
    parser.add_argument("workspaces", nargs="+", metavar="[TASK=]WORKSPACE",
                        help="folder as dvc repro baseline leaves it")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("study"), help="folder, default: study")
    parser.add_argument("--bits", nargs="+", type=int, default=[16, 8, 6, 4, 3], metavar="BITS",
                        help="of weights and activations, default: 16 8 6 4 3")  # fmt: skip
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="default: ptq qat")
    parser.add_argument("--data", nargs="+", choices=DATA, default=[AS_IS], help="training sets, default: as_is")
    parser.add_argument("--by", choices=BY, default="class", help="what is balanced or long-tailed, default: class")
    parser.add_argument("--ratio", type=float, default=10.0, help="most to fewest in the unfair set, default: 10")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="settings of params.yaml for everything: --set quantize.epochs=5")  # fmt: skip
    parser.add_argument("--tables", action="store_true", help="write tables and figures of what is there; run nothing")
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    """Raise ``UserError`` for a width or ratio out of range, or a value given twice."""
    for option in ("bits", "ways", "data"):
        values = getattr(options, option)
        if len(set(values)) < len(values):
            raise UserError(f"--{option}: got {' '.join(map(str, values))}; allowed: each value once")
    for bits in options.bits:
        if not LOWEST <= bits <= HIGHEST:
            raise UserError(f"--bits: got {bits}; allowed: whole numbers from {LOWEST} to {HIGHEST}")
    if not 1 <= options.ratio <= 1000:
        raise UserError(f"--ratio: got {options.ratio:g}; allowed: numbers from 1 to 1000")


class StudySession(Session):
    """A session that hands out the predictions of the point it measured last."""

    after: Predictions

    def _row(self, point: Point, assigned: Assigned, model: Any, after: Predictions, start: float) -> CurveRow:
        self.after = after
        return super()._row(point, assigned, model, after, start)

    def study(self, key: Key, point: Point) -> list[StudyRow]:
        """Measure ``point`` and return its rows by class and group, on the test split."""
        self.measure(point)
        classes, groups = self.before.classes, self.before.groups
        return point_rows(
            key, self.before["test"], self.after["test"], classes=classes, groups=groups, settings=point.settings
        )


def plan(options: argparse.Namespace, workspace: Workspace, data: str) -> dict[Key, Point]:
    """Return the points of one classifier."""
    given = dict(map(parse_setting, options.set))
    found = {}
    for way in options.ways:
        for bits in options.bits:
            own = methods.settings_of(WAYS[way], workspace.info, bits, given)
            settings = {**(own or {}), "quantize.activations.bits": bits}
            try:
                config = parse_config(with_settings(workspace.params, settings))
            except ConfigError as error:
                raise ConfigError(f"{workspace.task}, {way}, {bits} bits: {error}") from None
            key = (workspace.task, data, config.seed, way, bits)
            place = (workspace.task, config.seed, way, methods.is_tuned(WAYS[way]), float(bits))
            found[key] = Point(place, as_overrides(settings), config)
    return found


def run(options: argparse.Namespace, say: Say) -> int:
    """Measure what is missing and write tables and figures; return 1 where a point could not be measured."""
    from fairquant.report.analysis_study_write import write_study

    check(options)
    path, failed = options.out / CSV, 0
    if not options.tables:
        workspaces = open_all(options.workspaces)
        plans = [(workspace, data, plan(options, workspace, data)) for workspace in workspaces for data in options.data]
        done = _begin(path, plans)
        say(f"{path}: {len(done)} points are there, {sum(len(p.keys() - done) for _, _, p in plans)} to do")
        with each_warning_once():
            for workspace, data, points in plans:
                todo = {key: point for key, point in points.items() if key not in done}
                failed += _measure(options, workspace, data, todo, path, say) if todo else 0
    rows = read_rows(path)
    if not rows:
        raise UserError(f"{path}: got no row; allowed: at least one measured point")
    write_study(rows, options.out)
    say(f"{options.out / 'study.md'}: tables, figures beside it")
    return 1 if failed else 0


def _begin(path: Path, plans: Iterable[tuple[Workspace, str, dict[Key, Point]]]) -> set[Key]:
    """Clean the csv of what a kill left half-written; return the points that are there.

    Raises ``UserError`` for a point that is there with other settings.
    """
    rows = read_rows(path) if path.exists() else []
    known = {row.key: row for row in rows}
    for _, _, points in plans:
        for key, point in points.items():
            if key in known and known[key].settings != point.settings:
                raise UserError(
                    f"{path}: got {describe(key)} with other settings ({known[key].settings}); allowed: the same "
                    "settings, or another --out"
                )
    write_text(path, header_line() + "".join(map(row_line, rows)))
    return set(known)


def _measure(
    options: argparse.Namespace, workspace: Workspace, data: str, todo: dict[Key, Point], path: Path, say: Say
) -> int:
    name = f"{''.join(c if c.isalnum() else '_' for c in workspace.task)}-s{workspace.config.seed}-{data}"
    skew = Skew(data, options.by, options.ratio)
    own = derive(workspace, skew, options.out / "workspaces" / name, dict(map(parse_setting, options.set)))
    session, failed = StudySession(own, next(iter(todo.values())).config, options.out / "cache"), 0
    for place, (key, point) in enumerate(todo.items(), start=1):
        head = f"[{place}/{len(todo)}] {describe(key)}"
        try:
            rows = session.study(key, point)
        except UserError as error:
            failed += 1
            say(f"{head}: FAILED, {' '.join(str(error).split())}")
            continue
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write("".join(map(row_line, rows)))
            file.flush()
            os.fsync(file.fileno())
        [summary] = [PointSummary.of(found) for found in by_point(rows).values()]
        phi = "–" if summary.phi_class is None else f"{summary.phi_class:.3f}"
        say(f"{head}: overall {percent(summary.overall)}, worst class {percent(summary.worst_class)}, φ {phi}")
    return failed


def describe(key: Key) -> str:
    """Write a point for people.

    >>> describe(("mnist", "fair", 0, "ptq", 4))
    'mnist fair seed 0 ptq W4A4'
    """
    task, data, seed, way, bits = key
    return f"{task} {data} seed {seed} {way} W{bits}A{bits}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; a user's mistake is one line and exit code 2, Ctrl-C keeps every finished point."""
    options = parse(arguments)
    return command.run(lambda say: run(options, say))


if __name__ == "__main__":
    raise SystemExit(main())
