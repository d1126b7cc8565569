"""What a suite asks of git and DVC: the experiments there are, DVC's task queue, and how to mend it after a kill.

Only commands a user could type are used. As seen with DVC 3.67:

- Workers outlive the process that started them and end by themselves ten seconds after the queue is empty.
- After ``kill -9`` of a worker its experiment runs on, but nobody collects the result: the task says "Running" for
  ever. ``dvc queue kill`` on a task whose process is gone marks it as failed, after which it can be removed and queued
  again; the stages that ended come from the cache.
- ``dvc exp run --queue`` changes params.yaml for a moment while it stashes the experiment, so it is never interrupted.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairquant.artifacts import write_text
from fairquant.config.yaml_core import read_yaml
from fairquant.errors import UserError
from scripts.suite.plan import Task

ROW = re.compile(r"([0-9a-f]{7})\s+(\S+)\s+.*\s(Queued|Running|Failed|Success|Unknown)")
WORKERS = re.compile(r"Worker status: (\d+) active, (\d+) idle")
PATIENCE = 10
"""How often a command is tried while another process holds DVC's lock."""


@dataclass(frozen=True)
class Entry:
    """One row of ``dvc queue status``; ``revision`` is the first seven digits of the stashed commit."""

    revision: str
    name: str
    state: str


@dataclass(frozen=True)
class Status:
    """The queue and the number of workers that answered."""

    entries: tuple[Entry, ...]
    workers: int

    @classmethod
    def parse(cls, text: str) -> Status:
        r"""Read what ``dvc queue status`` prints.

        >>> Status.parse("060a9ea  s-fp32-s0  09:12 AM  Queued\n\nWorker status: 1 active, 0 idle")
        Status(entries=(Entry(revision='060a9ea', name='s-fp32-s0', state='Queued'),), workers=1)
        """
        workers = WORKERS.search(text)
        if workers is None:
            raise UserError(f"dvc queue status: got {text!r}; allowed: what DVC 3.60 and later print")
        rows = [match for line in text.splitlines() if (match := ROW.fullmatch(line.strip()))]
        return cls(tuple(Entry(*row.groups()) for row in rows), int(workers[1]) + int(workers[2]))


@dataclass(frozen=True)
class Experiment:
    """A finished experiment: its commit and the commit it started from."""

    name: str
    revision: str
    baseline: str


class Queue:
    """The repository in ``root``, with its experiments and its queue."""

    def __init__(self, root: Path) -> None:
        """Use the dvc of the running Python, for workers and stages too."""
        self.root = root
        folder = str(Path(sys.executable).parent)
        self._environment = {**os.environ, "PATH": folder + os.pathsep + os.environ.get("PATH", "")}

    def git(self, *arguments: str) -> str:
        """Return what a git command prints; its failure is a ``UserError``."""
        return self._run("git", *arguments)

    def dvc(self, *arguments: str) -> str:
        """Return what a dvc command prints, tried again while another process holds the lock."""
        for _ in range(PATIENCE):
            try:
                return self._run(sys.executable, "-m", "dvc", *arguments)
            except UserError as error:
                if not re.search(r"lock|busy", str(error)):
                    raise
                blocked = error
                time.sleep(3)
        raise blocked

    def _run(self, *command: str) -> str:
        """Run to the end in a session of its own: Ctrl-C reaches this process alone, and is raised afterwards.

        Output goes to files: workers inherit it, and a pipe would not end before they do.
        """
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(command, cwd=self.root, env=self._environment, stdin=subprocess.DEVNULL,
                                       stdout=output, stderr=errors, start_new_session=True)  # fmt: skip
            try:
                process.wait()
            except KeyboardInterrupt:
                process.wait()
                raise
            texts = []
            for file in (output, errors):
                file.seek(0)
                texts.append(file.read())
        if process.returncode != 0:
            words = command[2:] if command[1:2] == ("-m",) else command
            last = (texts[1].strip() or texts[0].strip() or "no message").splitlines()[-1]
            raise UserError(f"{' '.join(words)}: exited {process.returncode} ({last})")
        return texts[0]

    def head(self) -> str:
        """Return the commit that is checked out."""
        return self.git("rev-parse", "HEAD").strip()

    def changed(self) -> list[str]:
        """Return the tracked files that differ from the commit."""
        return [line[3:] for line in self.git("status", "--porcelain", "--untracked-files=no").splitlines()]

    def untracked(self, path: str) -> list[str]:
        """Return the files under ``path`` that git does not track, ignored ones included."""
        return self.git("ls-files", "--others", "--", path).splitlines()

    def experiments(self) -> list[Experiment]:
        """Return all finished experiments, read from the refs; takes milliseconds."""
        done = []
        for line in self.git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").splitlines():
            revision, ref = line.split(" ", 1)
            parts = ref.split("/")
            if len(parts) == 5 and re.fullmatch(r"[0-9a-f]{40}", parts[2] + parts[3]):
                done.append(Experiment(parts[4], revision, parts[2] + parts[3]))
        return done

    def baseline(self, revision: str) -> str:
        """Return the commit a queued task was queued on."""
        return self.git("rev-parse", f"{revision}^1").strip()

    def params(self, revision: str) -> dict[str, Any]:
        """Return params.yaml of a commit."""
        return dict(read_yaml(self.git("show", f"{revision}:params.yaml"), source=f"params.yaml of {revision}"))

    def metrics(self, revision: str) -> dict[str, Any]:
        """Return metrics/evaluate.json of a commit."""
        return dict(json.loads(self.git("show", f"{revision}:metrics/evaluate.json")))

    def status(self) -> Status:
        """Return the queue's rows; takes a second."""
        return Status.parse(self.dvc("queue", "status"))

    def put(self, task: Task) -> None:
        """Queue an experiment."""
        self.dvc(*queue_command(task))

    def start(self, jobs: int) -> None:
        """Start as many of ``jobs`` workers as do not run yet."""
        self.dvc("queue", "start", "-j", str(jobs))

    def remove(self, entry: Entry) -> None:
        """Forget a task that has not started or has ended."""
        self.dvc("queue", "remove", entry.revision)

    def abandon(self, entry: Entry) -> bool:
        """Mark a task as failed whose process is gone; False where a worker still has it in hand.

        That the process has ended is written down first: DVC would send a signal to whoever has its number now.
        """
        for path in self._files(entry, "json"):
            info = json.loads(path.read_text())
            if info["returncode"] is None:
                write_text(path, json.dumps({**info, "returncode": -1}))
        try:
            self.dvc("queue", "kill", entry.revision)
        except UserError as error:
            if "is initializing" in str(error):
                return False
            raise
        return True

    def log(self, entry: Entry) -> list[str]:
        """Return the lines a task printed; none where it never came so far."""
        return [line for path in self._files(entry, "out") for line in path.read_text(errors="replace").splitlines()]

    def alive(self, entry: Entry) -> bool:
        """Tell whether the process of a task that has started still runs."""
        for path in self._files(entry, "json"):
            pid = str(json.loads(path.read_text())["pid"])
            listed = subprocess.run(["ps", "-o", "args=", "-p", pid], stdout=subprocess.PIPE, text=True).stdout
            if entry.revision in listed:
                return True
        return False

    def _files(self, entry: Entry, suffix: str) -> Sequence[Path]:
        return sorted(self.root.glob(f".dvc/tmp/exps/run/{entry.revision}*/{entry.revision}*.{suffix}"))


def queue_command(task: Task) -> list[str]:
    """Return the words after ``dvc`` that queue ``task``."""
    settings = [word for setting in task.overrides for word in ("-S", setting)]
    return ["exp", "run", "--queue", "-n", task.name, *settings]
