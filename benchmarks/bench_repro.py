"""What ``dvc repro`` costs when there is nothing to do: this pipeline beside a trivial one of as many stages.

    python -m benchmarks.bench_repro [--rounds 9] [--profile noop.prof]

Both lie in temporary Git repositories. Ours has every file of this one that Git does not ignore, its own dvc.yaml and
params.yaml; only the commands are replaced, by some that write small files where the stage would write its own, because
what a stage computed does not matter to a run in which none is due. A trivial stage is ``python -c``, one file in, one
file out. The clock is the processor time of the child process. ``--profile`` leaves a cProfile of one such run of ours.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.table import Pairs, Row, alternate

ROOT = Path(__file__).resolve().parents[1]
WANTED = 1.3
GIT_FILES = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
DVC = (sys.executable, "-m", "dvc")
NOTHING_DUE = "Data and pipelines are up to date."


def children() -> float:
    """Return the processor seconds of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def execute(folder: Path, *command: str) -> str:
    """Run ``command`` in ``folder``; return what it printed, or stop with what it said."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"DVC_NO_ANALYTICS": "1", "CI": "1"}  # CI: no look for newer versions of DVC
    environment |= {"PYTHONPYCACHEPREFIX": str(folder.parent / "bytecode")}  # compiled once, whoever runs this
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} in {folder}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def no_op(folder: Path) -> None:
    """Reproduce a pipeline in which nothing is due; refuse to time one in which something is."""
    printed = execute(folder, *DVC, "repro")
    if NOTHING_DUE not in printed:
        raise SystemExit(f"dvc repro in {folder}: a stage was due\n{printed}")


def trivial(folder: Path, stages: int) -> Path:
    """Make a chain of ``stages`` stages and reproduce it."""
    chain = {
        f"stage{i}": {"cmd": f"python -c \"open('{i + 1}', 'w').write('{i}')\"", "deps": [str(i)], "outs": [str(i + 1)]}
        for i in range(stages)
    }
    (folder / "0").write_text("begin", encoding="utf-8")
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": chain}, sort_keys=False), encoding="utf-8")
    execute(folder, "git", "init", "--quiet")
    execute(folder, *DVC, "init", "--quiet")
    execute(folder, *DVC, "repro")
    return folder


def out_paths(stage: dict[str, Any]) -> list[str]:
    """Return the paths of a stage's outs, metrics and plots.

    >>> out_paths({"outs": ["report"], "metrics": [{"a.json": {"cache": False}}]})
    ['report', 'a.json']
    """
    declared = [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
    return [path for out in declared for path in ([out] if isinstance(out, str) else out)]


def ours(folder: Path) -> Path:
    """Copy the repository's tracked files, replace the commands of its stages, and reproduce it."""
    listed = subprocess.run(GIT_FILES, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    pipeline = yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))
    named = {dep for stage in pipeline["stages"].values() for dep in stage["deps"]}
    for stage in pipeline["stages"].values():
        stage["cmd"] = " && ".join(writing(path, named) for path in out_paths(stage))
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False), encoding="utf-8")
    execute(folder, "git", "init", "--quiet")
    execute(folder, *DVC, "repro")
    return folder


def writing(path: str, named: Iterable[str]) -> str:
    """Return a shell command that writes a file; where it has no ending a folder, with what is ``named`` below it.

    >>> writing("metrics/bits.json", ())
    'mkdir -p metrics && echo metrics/bits.json > metrics/bits.json'
    >>> writing("report", ("report/a.md", "other/b.md"))
    'mkdir -p report && echo report/0 > report/0 && echo report/1 > report/1 && echo report/a.md > report/a.md'
    """
    if Path(path).suffix:
        return f"mkdir -p {Path(path).parent} && echo {path} > {path}"
    inside = [*(f"{path}/{number}" for number in range(2)), *sorted(n for n in named if n.startswith(f"{path}/"))]
    return " && ".join([f"mkdir -p {path}", *(f"echo {name} > {name}" for name in inside)])


def measured(rounds: int, look: Callable[[Path], object] = lambda folder: None) -> Pairs:
    """Return the seconds of both no-ops; ``look`` at our copy in the end."""
    with tempfile.TemporaryDirectory(prefix="fairquant-") as name:
        folders = [Path(name, "trivial"), Path(name, "ours")]
        for folder in folders:
            folder.mkdir()
        stages = len(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
        trivial(folders[0], stages)
        ours(folders[1])
        pairs = alternate(*(partial(no_op, folder) for folder in folders), rounds=rounds, clock=children)
        look(folders[1])
    return pairs


def rows(quick: bool) -> Iterator[Row]:
    """Yield the no-op of this pipeline ÷ a trivial one's."""
    what = "dvc repro with nothing to do: this pipeline ÷ a trivial one of as many stages"
    yield measured(5 if quick else 9).row("repro/no-op", what, wanted=WANTED)


def profile(path: Path, folder: Path) -> None:
    execute(folder, sys.executable, "-m", "cProfile", "-o", str(path.resolve()), "-m", "dvc", "repro")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--profile", type=Path)
    options = parser.parse_args()
    pairs = measured(options.rounds, partial(profile, options.profile) if options.profile else lambda folder: None)
    print("| trivial s | ours s | ratio | wanted |\n|--:|--:|--:|--:|")
    row = pairs.row("repro/no-op", "")
    print(f"| {row.baseline:.2f} | {row.ours:.2f} | {row.ratio:.2f} | ≤ {WANTED} |")


if __name__ == "__main__":
    main()
