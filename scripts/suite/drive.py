"""Bring a suite to its end: queue what is missing, start workers, wait, mend what a kill left behind.

Every decision is taken from what git and DVC say now, so that a suite killed at any point is continued by starting it
again. An experiment is finished when there is one of its name, of this commit and with these parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fairquant.errors import UserError
from scripts.suite.plan import Plan, Task
from scripts.suite.queue import Entry, Experiment, Status

POLL = 2.0
"""Seconds between two looks at git's refs; the queue itself, which is slower to ask, is asked at every fifth."""
ASK_EVERY = 5


class Runner(Protocol):
    """What ``drive`` needs of ``scripts.suite.queue.Queue``."""

    def head(self) -> str: ...  # noqa: D102
    def changed(self) -> list[str]: ...  # noqa: D102
    def baseline(self, revision: str) -> str: ...  # noqa: D102
    def experiments(self) -> list[Experiment]: ...  # noqa: D102
    def params(self, revision: str) -> dict[str, Any]: ...  # noqa: D102
    def status(self) -> Status: ...  # noqa: D102
    def put(self, task: Task) -> None: ...  # noqa: D102
    def start(self, jobs: int) -> None: ...  # noqa: D102
    def remove(self, entry: Entry) -> None: ...  # noqa: D102
    def abandon(self, entry: Entry) -> bool: ...  # noqa: D102
    def log(self, entry: Entry) -> list[str]: ...  # noqa: D102
    def alive(self, entry: Entry) -> bool: ...  # noqa: D102


@dataclass
class Drive:
    """One sitting at a suite: ``failed`` collects experiment → reason, ``say`` gets one line per event."""

    runner: Runner
    plan: Plan
    jobs: int
    say: Callable[[str], None]
    sleep: Callable[[float], None] = time.sleep
    head: str = ""
    failed: dict[str, str] = field(default_factory=dict)
    _tries: dict[str, int] = field(default_factory=dict)
    _suspects: set[str] = field(default_factory=set)
    _verified: set[str] = field(default_factory=set)

    def begin(self) -> None:
        """Hold on to the commit that is checked out; what is queued already under the suite's name must be of it.

        Raises ``UserError`` for a waiting or running task with other settings or of other code.
        """
        self.head = self.runner.head()
        for entry in self.runner.status().entries:
            expected = self.plan.expected(entry.name)
            if expected is not None and entry.state in ("Queued", "Running"):
                self._same(entry.name, self.runner.baseline(entry.revision), entry.revision, expected)

    def _check_workspace(self) -> None:
        """Experiments are the commit plus settings: raise ``UserError`` where the workspace holds anything else."""
        changed, head = self.runner.changed(), self.runner.head()
        if changed:
            raise UserError(
                f"workspace: got changed files ({', '.join(changed[:3])}); allowed: everything committed (commit them, "
                "or undo what an interrupted dvc left behind with git checkout -f BRANCH)"
            )
        if head != self.head:
            raise UserError(
                f"workspace: got commit {head[:7]} checked out while the suite runs on {self.head[:7]}; allowed: the "
                "same commit to the end (run a suite in a clone of its own)"
            )

    def finished(self) -> dict[str, str]:
        """Return name → commit of this suite's finished experiments.

        Raises ``UserError`` where one of the suite's name has other settings or another code.
        """
        done = {}
        for experiment in self.runner.experiments():
            expected = self.plan.expected(experiment.name)
            if expected is not None:
                if experiment.revision not in self._verified:
                    self._same(experiment.name, experiment.baseline, experiment.revision, expected)
                    self._verified.add(experiment.revision)
                done[experiment.name] = experiment.revision
        return done

    def _same(self, name: str, baseline: str, revision: str, expected: Mapping[str, Any]) -> None:
        if baseline != self.head:
            raise UserError(
                f"--name {self.plan.name}: got experiment {name} of commit {baseline[:7]} while {self.head[:7]} is "
                "checked out; allowed: another --name (equal stages come from the cache), or that commit"
            )
        differing = differences(self.runner.params(revision), expected)
        if differing:
            raise UserError(
                f"--name {self.plan.name}: got experiment {name} with other settings ({differing[0]}); allowed: the "
                "same settings, or another --name"
            )

    def run(self, tasks: Sequence[Task]) -> None:
        """Return when every task is finished or has failed twice."""
        self._check_workspace()
        known = {task.name for task in tasks} & set(self.finished())
        if known:
            self.say(f"{len(known)} of {len(tasks)} experiments are finished already")
        looks = 0
        while any(task.name not in known and task.name not in self.failed for task in tasks):
            if looks % ASK_EVERY == 0:
                self._mend(tasks, known, fresh=looks == 0)
            self.sleep(POLL)
            looks += 1
            self._note(tasks, known)

    def _note(self, tasks: Sequence[Task], known: set[str]) -> None:
        """Add what has been finished meanwhile to ``known``, and say so."""
        done = self.finished()
        for task in tasks:
            if task.name in done and task.name not in known:
                known.add(task.name)
                self.say(f"finished {task.name} ({len(known)}/{len(tasks)})")

    def _mend(self, tasks: Sequence[Task], known: set[str], *, fresh: bool) -> None:
        """Queue what is neither finished nor under way, take up what failed or was orphaned, keep workers going.

        ``fresh``: what failed in an earlier sitting gets another chance.
        """
        status = self.runner.status()
        self._note(tasks, known)  # one may have ended between the two questions
        rows: dict[str, list[Entry]] = {}
        for entry in status.entries:
            rows.setdefault(entry.name, []).append(entry)
        suspects: set[str] = set()
        waiting = False
        for task in tasks:
            if task.name not in known and task.name not in self.failed:
                waiting |= self._mend_task(task, rows.get(task.name, []), suspects, fresh)
        self._suspects = suspects
        if waiting and status.workers < self.jobs:
            self.runner.start(self.jobs)

    def _mend_task(self, task: Task, entries: Sequence[Entry], suspects: set[str], fresh: bool) -> bool:
        """Bring one unfinished task on its way; return whether it waits for a worker."""
        active = [entry for entry in entries if entry.state in ("Queued", "Running")]
        for entry in entries:
            if entry.state not in ("Queued", "Running"):
                self._take_up(entry, fresh)
        for entry in active:
            if entry.state == "Running" and not self.runner.alive(entry):
                # a worker may be about to start or to collect it: ask once more, and let DVC have the last word
                suspects.add(entry.revision)
                if entry.revision in self._suspects and self.runner.abandon(entry):
                    self.say(f"{entry.name} lost its worker, queued again")
                    self.runner.remove(entry)
                    active = [other for other in active if other is not entry]
        if not active and task.name not in self.failed:
            self._check_workspace()
            self.runner.put(task)
            self.say(f"queued {task.name}")
            return True
        return any(entry.state == "Queued" for entry in active)

    def _take_up(self, entry: Entry, fresh: bool) -> None:
        """Forget a task that ended without an experiment; a mistake, or a second failure in a row, is final."""
        lines = self.runner.log(entry)
        mistake = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        tries = self._tries[entry.name] = self._tries.get(entry.name, 0) + 1
        if not fresh and (mistake or tries > 1):
            shown = mistake or [line for line in lines if line.strip()] or ["no output"]
            self.failed[entry.name] = shown[-1].strip()
            self.say(f"FAILED {entry.name}: {self.failed[entry.name]} (dvc queue logs {entry.name})")
        else:
            self.say(f"{entry.name} failed{' earlier' if fresh else ''}, tried once more")
            self.runner.remove(entry)


def differences(actual: Mapping[str, Any], expected: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return "key: got a, expected b" of every setting that differs.

    >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
    ['a.b: 1 instead of 3']
    """
    found = []
    for key in sorted({*actual, *expected}, key=str):
        old, new = actual.get(key), expected.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old!r} instead of {new!r}")
    return found
