"""Measure: ``python -m benchmarks [bench_assign ...] [--quick] [--check]``, each benchmark in a process of its own.

Without names the table is written, benchmarks/results.json and benchmarks/results.md, unless ``--quick`` or ``--check``
is given. ``--check`` compares the ratios with the committed table's and exits 1 where one is worse than allowed
(``benchmarks.results``). A benchmark that fails is named, the others still run, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import results
from benchmarks.machine import describe_machine
from benchmarks.table import Row

NAMES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py")))
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def measured(name: str, *, quick: bool, threads: int) -> tuple[list[Row], bool]:
    """Run one benchmark; return its rows, those before a failure too, and whether it ended well."""
    with tempfile.TemporaryDirectory(prefix="fairquant-bench-") as folder:
        lines = Path(folder, "rows.jsonl")
        lines.touch()
        command = [sys.executable, "-m", "benchmarks.measure", name, "--to", str(lines), *["--quick"] * quick]
        environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
        code = subprocess.run(command, cwd=results.FOLDER.parent, env=environment).returncode
        return results.read_lines(lines), code == 0


def verdicts(rows: Sequence[Row], path: Path, machine: results.Machine, *, names: Sequence[str], quick: bool) -> int:
    """Print each row's comparison with the table at ``path``; return how many fail, rows that are gone included."""
    committed, before = results.read_results(path)
    same = all(machine[key] == before.get(key) for key in ("cpu", "instructions"))
    if not same:
        print(f"another processor than the committed table's ({before.get('cpu')}): timed ratios may differ more")
    failed = 0
    for row in rows:
        reason = results.worse(row, committed.get(row.id), same_machine=same)
        failed += reason is not None
        print(f"FAIL {row.id}: {reason}" if reason else f"{'ok' if row.id in committed else 'new':4} {row.id}")
    prefixes = tuple(name.removeprefix("bench_") + "/" for name in names)
    gone = [] if quick else sorted(set(committed) - {row.id for row in rows})
    for id in (id for id in gone if id.startswith(prefixes)):
        failed += 1
        print(f"FAIL {id}: in the committed table, not measured")
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write or check; return 2 for an unknown name, 1 where a benchmark or the check failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="all where none is named")
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds; the committed table stays")
    parser.add_argument("--check", action="store_true", help="compare with the committed table instead of writing it")
    parser.add_argument("--against", type=Path, default=results.JSON, help="the table to compare with")
    parser.add_argument("--to", type=Path, help="write the table into this folder, whatever else is asked")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        print(f"benchmarks: got {', '.join(unknown)}; allowed: {' | '.join(NAMES)}", file=sys.stderr)
        return 2
    if options.check and not options.against.is_file():
        print(f"--against: got {options.against}; allowed: a results.json that `make bench` wrote", file=sys.stderr)
        return 2
    names, rows, failed = options.names or NAMES, [], []
    for name in names:
        start = time.perf_counter()
        print(f"\n== {name}", flush=True)
        found, well = measured(name, quick=options.quick, threads=options.threads)
        rows += found
        failed += [] if well else [name]
        print(f"   {time.perf_counter() - start:.0f} s", flush=True)
    machine = describe_machine(options.threads)
    bad = verdicts(rows, options.against, machine, names=names, quick=options.quick) if options.check else 0
    folder = options.to or (None if options.quick or options.check or options.names or failed else results.FOLDER)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        results.write_results(rows, machine, folder)
    for name in failed:
        print(f"{name}: failed (see above)", file=sys.stderr)
    return 1 if failed or bad else 0


if __name__ == "__main__":
    sys.exit(main())
