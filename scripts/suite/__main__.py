"""The command line: ``python -m scripts.suite --name faces --data path=/data/faces.csv --seeds 0 1 2``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from fairquant import presets
from fairquant.errors import UserError
from fairquant.report.suite import Run, Suite
from fairquant.report.suite_plots import write_plots
from fairquant.report.suite_tables import write_tables
from fairquant.terminal import failed
from scripts.suite.check import check_inputs
from scripts.suite.drive import Drive
from scripts.suite.plan import Plan, make_plan
from scripts.suite.queue import Queue, queue_command


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.suite",
        description="methods × seeds as DVC experiments, then one table; see docs/suite.md",
    )
    parser.add_argument("--name", default="suite", help="begins the experiments' names (default: suite)")
    parser.add_argument("--methods", nargs="+", default=list(presets.PRESETS), metavar="METHOD",
                        help="presets, default all: " + " ".join(presets.PRESETS))  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="default: 0 1 2")
    parser.add_argument("--data", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="--set of a key in section data: --data name=folder label=dx")  # fmt: skip
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="settings of params.yaml for every run: --set model.name=resnet18")  # fmt: skip
    parser.add_argument(
        "--reference", default="uniform4_ft", help="method the tests are against (default: uniform4_ft)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="queue workers (default: 1)")
    parser.add_argument("--out", type=Path, help="folder of the tables (default: suite/NAME)")
    parser.add_argument("--tables", action="store_true", help="write the tables of what is finished; run nothing")
    parser.add_argument("--dry-run", action="store_true", help="print the dvc commands; run nothing")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, queue: Queue) -> int:
    """Run the suite and write its tables; return 1 where an experiment failed."""
    settings = [*(f"data.{item}" for item in options.data), *options.set]
    plan, config = make_plan(options.name, options.methods, options.seeds, settings, _params(queue.root))
    if options.jobs < 1:
        raise UserError(f"--jobs: got {options.jobs}; allowed: whole numbers from 1")
    if options.dry_run:
        for wave in plan.waves(plan.reasons):
            for task in wave:
                print("dvc " + shlex.join(queue_command(task)))
        return 0
    drive = Drive(queue, plan, options.jobs, lambda line: tqdm.write(line, file=sys.stderr))
    drive.begin()
    reasons = dict(plan.reasons)
    if not options.tables:
        check_inputs(config, queue)
        reasons = _drive(drive, plan, queue)
    out = options.out or queue.root / "suite" / options.name
    write(_collect(drive, plan, queue, reasons, options.reference), out)
    print(f"{out / 'suite.md'}: tables, plots beside it", file=sys.stderr)
    return 1 if drive.failed else 0


def _params(root: Path) -> str:
    try:
        return (root / "params.yaml").read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("params.yaml: not found; run from the repository's folder") from None


def _drive(drive: Drive, plan: Plan, queue: Queue) -> dict[str, str]:
    """Run the first method, learn the groups from it, then run those methods that can work with them."""
    first, *_ = plan.waves(plan.reasons) or [[]]
    drive.run(first)
    done = drive.finished()
    groups = next((list(queue.metrics(done[task.name])["group"]) for task in first if task.name in done), None)
    reasons = dict(plan.reasons) if groups is None else plan.refused(groups)
    drive.run([task for wave in plan.waves(reasons) for task in wave])
    return reasons


def _collect(drive: Drive, plan: Plan, queue: Queue, reasons: dict[str, str], reference: str) -> Suite:
    """Read the finished experiments' commits."""
    done = drive.finished()
    tasks = [plan.task(method, seed) for method in plan.methods for seed in plan.seeds]
    runs = tuple(Run(t.method, t.seed, queue.metrics(done[t.name])) for t in tasks if t.name in done)
    if not runs:
        raise UserError(f"--name {plan.name}: got no finished experiment; allowed: at least one (see dvc queue status)")
    for task in tasks:
        if task.name in drive.failed:
            reasons.setdefault(task.method, f"seed {task.seed} failed: {drive.failed[task.name]}")
    for method in plan.methods:
        if method not in {run.method for run in runs}:
            reasons.setdefault(method, "not finished")
    about = {
        "code": f"commit {drive.head[:12]}",
        "settings": " ".join(plan.settings) or "as in params.yaml",
        "seeds": " ".join(map(str, plan.seeds)),
    }
    return Suite(plan.methods, runs, reasons, reference if reference in plan.methods else None, about)


def write(suite: Suite, folder: Path) -> None:
    """Write tables and plots into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(suite, folder, write_plots(suite, folder))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; a user's mistake is one line and exit code 2, Ctrl-C leaves the workers to their work."""
    try:
        return run(parse(arguments), Queue(Path.cwd()))
    except Exception as error:
        return failed(error)
    except KeyboardInterrupt:
        print("stopped watching: queued experiments go on (`dvc queue stop --kill` ends them), the same command "
              "continues", file=sys.stderr)  # fmt: skip
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
