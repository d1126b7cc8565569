"""The command line: ``python -m scripts.curves measure WORKSPACE... --out curves.csv``, ``merge``, ``tables``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fairquant.errors import UserError
from fairquant.evaluate.gaps import each_warning_once
from fairquant.report.cells import percent, points
from fairquant.report.curves import CurveRow, describe_key, read_rows
from scripts import command
from scripts.command import Say
from scripts.curves.methods import BUDGETS, METHODS, PUBLISHED
from scripts.curves.points import TUNES, Point, Request, plan
from scripts.curves.session import Session
from scripts.curves.sheet import Sheet, merge, missing, shard_path
from scripts.curves.workspace import Workspace, open_all


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.curves", description="budget curves of allocators; see docs/curves.md"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("measure", help="measure points that are not in the csv yet")
    add.add_argument("workspaces", nargs="+", metavar="[TASK=]WORKSPACE", help="folder as dvc repro baseline leaves it")
    add.add_argument("--out", type=Path, default=Path("curves/curves.csv"), help="default: curves/curves.csv")
    add.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS), metavar="BITS",
                     help="bits per weight, default: " + " ".join(f"{b:g}" for b in BUDGETS))  # fmt: skip
    add.add_argument("--methods", nargs="+", default=list(METHODS), metavar="METHOD",
                     help="default all: " + " ".join(METHODS))  # fmt: skip
    add.add_argument("--tune", nargs="+", choices=list(TUNES), default=["none"], help="default: none")
    add.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                     help="settings of params.yaml for every point: --set quantize.epochs=5")  # fmt: skip
    add.add_argument("--redo", nargs="+", default=[], metavar="METHOD", help="measure these methods' points again")
    add.add_argument("--shard", default="1/1", metavar="I/N", help="do each Nth point, into a file of its own")
    join = commands.add_parser("merge", help="join the csv files of shards")
    join.add_argument("sources", nargs="+", type=Path, metavar="CSV")
    join.add_argument("--out", type=Path, required=True)
    show = commands.add_parser("tables", help="tables and plots of what is measured")
    show.add_argument("sources", nargs="+", type=Path, metavar="CSV")
    show.add_argument("--out", type=Path, required=True, help="folder")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, say: Say) -> int:
    """Measure what is missing; return 1 where a point could not be measured."""
    request = Request(tuple(options.methods), tuple(options.budgets), tuple(options.tune), tuple(options.set))
    request.check()
    index, count = shard(options.shard)
    unknown = [name for name in options.redo if name not in request.methods]
    if unknown:
        raise UserError(f"--redo: got {unknown[0]!r}; allowed: of --methods ({' '.join(request.methods)})")
    if options.redo and count > 1:
        raise UserError(f"--redo: got it with --shard {options.shard}; allowed: with one process")
    workspaces = open_all(options.workspaces)
    plans = [
        (workspace, plan(request, task=workspace.task, params=workspace.params, info=workspace.info,
                         groups=workspace.store.group_names))
        for workspace in workspaces
    ]  # fmt: skip
    sheet = Sheet(shard_path(options.out, index, count))
    again = [point.key for _, chosen in plans for point in chosen if point.key[2] in options.redo]
    sheet.without(again)
    rows = [*sheet.rows, *(read_rows(options.out) if count > 1 and options.out.exists() else [])]  # an earlier merge
    todo, place = [], 0
    for workspace, chosen in plans:
        own = [point for number, point in enumerate(chosen, start=place) if number % count == index - 1]
        place += len(chosen)
        todo.append((workspace, missing(own, rows, workspace.classifier, source=sheet.path)))
    return _measure(todo, sheet, options.out.with_name(f"{options.out.stem}.cache"), say)


def _measure(todo: Sequence[tuple[Workspace, list[Point]]], sheet: Sheet, folder: Path, say: Say) -> int:
    total, done, failed = sum(len(chosen) for _, chosen in todo), 0, 0
    say(f"{sheet.path}: {len(sheet.rows)} points are there, {total} to do")
    with each_warning_once():
        for workspace, chosen in todo:
            if not chosen:
                continue
            session = Session(workspace, chosen[0].config, folder)
            for point in chosen:
                done += 1
                head = f"[{done}/{total}] {describe_key(point.key)}"
                try:
                    row = session.measure(point)
                except UserError as error:
                    failed += 1
                    say(f"{head}: FAILED, {' '.join(str(error).split())}")
                else:
                    sheet.append(row)
                    say(f"{head}: {progress(row)}")
    return 1 if failed else 0


def progress(row: CurveRow) -> str:
    """Return a row's main numbers in a few words."""
    overall = f"overall {percent(row.test_overall_after)} ({points(row.overall_change)})"
    worst = f"worst {percent(row.test_worst_after)} ({points(row.worst_change)})"
    return f"{row.packed_mb:.3f} MB, {overall}, {worst}, {len(row.harmed)} harmed, {row.seconds:.1f} s"


def shard(text: str) -> tuple[int, int]:
    """Read I/N: which of how many processes this is.

    >>> shard("2/3")
    (2, 3)
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard: got {text!r}; allowed: I/N with whole numbers 1 <= I <= N")
    return int(index), int(count)


def tables(options: argparse.Namespace, say: Say) -> int:
    """Write tables and plots of the rows in several files."""
    from fairquant.report.curves_plots import write_plots
    from fairquant.report.curves_tables import write_tables

    rows = read_rows(*options.sources)
    if not rows:
        raise UserError(f"{options.sources[0]}: got no row; allowed: at least one measured point")
    options.out.mkdir(parents=True, exist_ok=True)
    order = tuple(METHODS)
    write_tables(rows, options.out, write_plots(rows, options.out, order=order), order=order, rivals=PUBLISHED)
    say(f"{options.out / 'curves.md'}: tables, plots beside it")
    return 0


def merged(options: argparse.Namespace, say: Say) -> int:
    """Join the files of several processes."""
    say(f"{options.out}: {merge(options.sources, options.out)} points")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; a user's mistake is one line and exit code 2, Ctrl-C keeps every finished point."""
    options = parse(arguments)
    works = {"measure": measure, "tables": tables, "merge": merged}
    return command.run(lambda say: works[options.command](options, say))


if __name__ == "__main__":
    raise SystemExit(main())
