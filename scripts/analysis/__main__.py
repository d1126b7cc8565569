"""The command line: ``python -m scripts.analysis run --name faces --data path=/data/faces.csv --models resnet18``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fairquant.errors import UserError
from fairquant.evaluate.gaps import each_warning_once
from fairquant.importance.maps import ImportanceMaps
from fairquant.report.curves import describe_key, read_rows
from scripts import command
from scripts.analysis import methods
from scripts.analysis.baseline import Baseline, open_named
from scripts.analysis.points import PHASES, Request, plan, require_one_data_set
from scripts.analysis.session import KeepingSession, kept_predictions
from scripts.command import Say
from scripts.curves.__main__ import progress
from scripts.curves.points import Point
from scripts.curves.sheet import Sheet, missing
from scripts.curves.workspace import Workspace
from scripts.suite.plan import NAME

CSV = "analysis.csv"
MAPS = "importance"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.analysis",
        description="baseline, compression, mitigation and analysis of models × methods × widths; see docs/analysis.md",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run_parser = commands.add_parser("run", help="measure what is missing, then write tables and figures")
    _add_inputs(run_parser)
    _add_grid(run_parser)
    show = commands.add_parser("sensitivity", help="layers × groups of importance maps as a figure")
    show.add_argument("maps", nargs="+", type=Path, metavar="MAPS", help="models/importance.safetensors, one per seed")
    show.add_argument("--out", type=Path, required=True, help="folder")
    return parser.parse_args(arguments)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="analysis", help="of the analysis; --out is analysis/NAME unless given")
    parser.add_argument("--out", type=Path, help="folder of everything that is kept and written")
    parser.add_argument("--data", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="--set of a key in section data: --data name=folder label=dx")  # fmt: skip
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="settings of params.yaml for everything: --set pretrain.epochs=12")  # fmt: skip
    parser.add_argument("--models", nargs="+", default=["resnet18"], metavar="MODEL", help="default: resnet18")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="default: 0 1 2")
    parser.add_argument("--workspaces", nargs="+", default=[], metavar="[MODEL=]WORKSPACE",
                        help="trained classifiers, instead of --data, --models and --seeds")  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="a few hundred samples, one epoch")


def _add_grid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--methods", nargs="+", default=list(methods.METHODS), metavar="METHOD",
                        help="ways of compressing, default: " + " ".join(methods.METHODS))  # fmt: skip
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 4, 3], metavar="BITS", help="default: 8 4 3")
    parser.add_argument("--mitigate", default=methods.BASE, metavar="METHOD",
                        help=f"what is mitigated (default: {methods.BASE})")  # fmt: skip
    parser.add_argument("--mitigations", nargs="*", default=list(methods.losses()), metavar="NAME",
                        help="fairness losses and post-processors, default: every loss")  # fmt: skip
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES), help="default: all")
    parser.add_argument("--reference", help="method the others are tested against (default: the first of --methods)")
    parser.add_argument("--redo", nargs="+", default=[], metavar="METHOD", help="measure these methods' points again")


def run(options: argparse.Namespace, say: Say) -> int:
    """Do the phases asked for; return 1 where a point could not be measured."""
    if not NAME.fullmatch(options.name):
        raise UserError(f"--name: got {options.name!r}; allowed: letters, digits, _ and -")
    settings = [*(f"data.{item}" for item in options.data), *options.set]
    request = Request(tuple(options.methods), tuple(options.bits), options.mitigate, tuple(options.mitigations),
                      tuple(settings), tuple(options.phases))  # fmt: skip
    request.check()
    reference = options.reference or request.methods[0]
    methods.check(reference, option="--reference")
    out = options.out or Path("analysis") / options.name
    failed = 0
    if request.phases != ("analysis",):
        workspaces = _workspaces(options, settings, out, say)
        require_one_data_set(workspaces)
        failed = _measure(workspaces, request, options.redo, out, say)
    if "analysis" in request.phases:
        report(out, reference=reference, order=(*request.methods, request.base), say=say)
    return 1 if failed else 0


def _workspaces(options: argparse.Namespace, settings: Sequence[str], out: Path, say: Say) -> list[Workspace]:
    if options.workspaces:
        if options.data or options.debug:
            raise UserError("--workspaces: got it with --data or --debug; allowed: those of the workspaces themselves")
        return [open_named(text) for text in options.workspaces]
    baseline = Baseline.begin(out, Path("params.yaml"), settings, debug=options.debug)
    return baseline.workspaces(options.models, options.seeds, say)


def _measure(workspaces: Sequence[Workspace], request: Request, redo: Sequence[str], out: Path, say: Say) -> int:
    """Measure the points that are not in the csv; return how many could not be."""
    unknown = [name for name in redo if name not in request.names]
    if unknown:
        raise UserError(f"--redo: got {unknown[0]!r}; allowed: of {' '.join(request.names) or 'the phases asked for'}")
    plans = [(workspace, plan(request, workspace)) for workspace in workspaces]
    sheet = Sheet(out / CSV)
    sheet.without([point.key for _, points in plans for point in points if point.key[2] in redo])
    todo = [(w, missing(points, sheet.rows, w.classifier, source=sheet.path)) for w, points in plans]
    total, done, failed = sum(len(points) for _, points in todo), 0, 0
    say(f"{sheet.path}: {len(sheet.rows)} points are there, {total} to do")
    with each_warning_once():
        for workspace, points in todo:
            if not points:
                continue
            session = KeepingSession(workspace, points[0].config, out / "cache")
            for point in points:
                done += 1
                failed += _one(session, point, sheet, f"[{done}/{total}]", say)
            session.maps(points[0].config).save(_maps_path(out, workspace))
    return failed


def _one(session: KeepingSession, point: Point, sheet: Sheet, count: str, say: Say) -> int:
    """Measure a point and keep its row; return 1, and say why, where that cannot be done."""
    head = f"{count} {describe_key(point.key)}"
    try:
        row = session.measure_any(point, sheet.rows)
    except UserError as error:
        say(f"{head}: FAILED, {' '.join(str(error).split())}")
        return 1
    sheet.append(row)
    say(f"{head}: {progress(row)}")
    return 0


def _maps_path(out: Path, workspace: Workspace) -> Path:
    model = workspace.task.replace("/", "_")
    return out / MAPS / f"{model}-s{workspace.config.seed}.safetensors"


def report(out: Path, *, reference: str, order: Sequence[str], say: Say) -> None:
    """Write tables and figures of every row in ``out``."""
    from fairquant.report.analysis_write import write_analysis

    rows = read_rows(out / CSV)
    if not rows:
        raise UserError(f"{out / CSV}: got no row; allowed: at least one measured point")
    found = {(row.task, row.seed): row for row in rows}
    paths = {key: out / MAPS / f"{key[0].replace('/', '_')}-s{key[1]}.safetensors" for key in found}
    maps = [(model, ImportanceMaps.load(path)) for (model, _), path in paths.items() if path.exists()]
    write_analysis(
        rows,
        out / "report",
        order=tuple(dict.fromkeys(order)),
        reference=reference,
        maps=maps,
        predictions=kept_predictions(out / "cache", rows),
    )
    say(f"{out / 'report/analysis.md'}: tables, figures beside it")


def sensitivity(options: argparse.Namespace, say: Say) -> int:
    """Draw the layers' shares in each group's importance, mean over the files given."""
    from fairquant.artifacts import write_text
    from fairquant.report.analysis_sensitivity import sensitivities, sensitivity_map, sensitivity_rows
    from fairquant.report.analysis_write import as_csv
    from fairquant.report.plots import save_figures

    name = "importance"
    found = sensitivities((name, ImportanceMaps.load(path)) for path in options.maps)
    options.out.mkdir(parents=True, exist_ok=True)
    save_figures(
        {"sensitivity.png": (sensitivity_map(found[name], "Share of each group's importance"), "")}, options.out
    )
    write_text(options.out / "sensitivity.csv", as_csv(sensitivity_rows(found)))
    say(f"{options.out / 'sensitivity.png'}: layers × groups; sensitivity.csv beside it")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; a user's mistake is one line and exit code 2, Ctrl-C keeps every finished point."""
    options = parse(arguments)
    work = sensitivity if options.command == "sensitivity" else run
    return command.run(lambda say: work(options, say))


if __name__ == "__main__":
    raise SystemExit(main())
