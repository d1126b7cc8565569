"""A suite brought to its end by a queue that fails, loses workers and is interrupted; nothing is run twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairquant.errors import UserError
from scripts.suite.drive import Drive
from scripts.suite.plan import make_plan
from scripts.suite.queue import Entry, Experiment, Status

PARAMS = (Path(__file__).resolve().parents[2] / "params.yaml").read_text()
HEAD = "a" * 40


class FakeQueue:
    """Git and DVC in memory: each look at the clock lets the workers do one step."""

    def __init__(self, plan) -> None:
        self.plan = plan
        self.commit = HEAD
        self.dirty: list[str] = []
        self.rows: dict[str, Entry] = {}
        self.done: list[Experiment] = []
        self.workers = 0
        self.orphans: set[str] = set()
        self.initializing = 0
        self.fails: dict[str, list[list[str]]] = {}
        self.logs: dict[str, list[str]] = {}
        self.ran: list[str] = []
        self.started: list[int] = []
        self.stashed: dict[str, dict] = {}

    def head(self):
        return self.commit

    def changed(self):
        return self.dirty

    def baseline(self, revision):
        return HEAD

    def experiments(self):
        return list(self.done)

    def params(self, revision):
        return self.stashed[revision]

    def status(self):
        return Status(tuple(self.rows.values()), self.workers)

    def put(self, task):
        revision = f"{len(self.stashed):07x}"
        self.stashed[revision] = self.plan.expected(task.name)
        self.rows[revision] = Entry(revision, task.name, "Queued")

    def start(self, jobs):
        self.started.append(jobs)
        self.workers = jobs

    def remove(self, entry):
        assert entry.state != "Running" or entry.revision in self.orphans
        del self.rows[entry.revision]

    def abandon(self, entry):
        assert not self.alive(entry)
        if self.initializing:
            self.initializing -= 1
            return False
        return True

    def log(self, entry):
        return self.logs.get(entry.revision, [])

    def alive(self, entry):
        return entry.revision not in self.orphans

    def step(self, _seconds):
        """End what runs; start what waits, one per worker."""
        for entry in [row for row in self.rows.values() if row.state == "Running" and row.revision not in self.orphans]:
            problems = self.fails.get(entry.name)
            if problems:
                self.logs[entry.revision] = problems.pop(0)
                self.rows[entry.revision] = Entry(entry.revision, entry.name, "Failed")
            else:
                self.rows[entry.revision] = Entry(entry.revision, entry.name, "Success")
                self.finish(entry.name, entry.revision)
        queued = [row for row in self.rows.values() if row.state == "Queued"]
        for entry in queued[: self.workers]:
            self.rows[entry.revision] = Entry(entry.revision, entry.name, "Running")
        if not queued:
            self.workers = 0

    def finish(self, name, revision, baseline=HEAD):
        self.ran.append(name)
        self.done.append(Experiment(name, revision, baseline))


@pytest.fixture
def plan():
    return make_plan("s", ("fp32", "uniform4"), (0, 1), ("debug=true",), PARAMS)[0]


@pytest.fixture
def queue(plan):
    return FakeQueue(plan)


def tasks(plan):
    return [task for wave in plan.waves({}) for task in wave]


def sit(queue, plan, *, sleep=None):
    """One sitting: returns the drive and what it said."""
    said: list[str] = []
    drive = Drive(queue, plan, 1, said.append, sleep or queue.step)
    drive.begin()
    drive.run(tasks(plan))
    return drive, said


def test_everything_runs_once_in_order(queue, plan):
    drive, said = sit(queue, plan)
    assert queue.ran == ["s-fp32-s0", "s-fp32-s1", "s-uniform4-s0", "s-uniform4-s1"]
    assert set(drive.finished()) == set(queue.ran)
    assert said[:4] == [f"queued {name}" for name in queue.ran]
    assert said[-1] == "finished s-uniform4-s1 (4/4)"


def test_second_sitting_does_nothing(queue, plan):
    sit(queue, plan)
    _, said = sit(queue, plan)
    assert len(queue.ran) == 4
    assert said == ["4 of 4 experiments are finished already"]


def test_an_interrupted_sitting_is_continued(queue, plan):
    steps = 0

    def interrupted(seconds):
        nonlocal steps
        queue.step(seconds)
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sit(queue, plan, sleep=interrupted)
    assert 0 < len(queue.ran) < 4
    sit(queue, plan)
    assert sorted(queue.ran) == sorted(task.name for task in tasks(plan))


def test_more_seeds_are_added_to_what_is_there(queue, plan):
    sit(queue, plan)
    more = make_plan("s", ("fp32", "uniform4"), (0, 1, 2), ("debug=true",), PARAMS)[0]
    queue.plan = more
    sit(queue, more)
    assert queue.ran[4:] == ["s-fp32-s2", "s-uniform4-s2"]


def test_a_failure_is_tried_once_more(queue, plan):
    queue.fails["s-fp32-s1"] = [["Killed"]]
    drive, said = sit(queue, plan)
    assert drive.failed == {}
    assert "s-fp32-s1 failed, tried once more" in said
    assert queue.ran.count("s-fp32-s1") == 1


def test_a_second_failure_is_reported_and_the_rest_goes_on(queue, plan):
    queue.fails["s-fp32-s1"] = [["Killed"], ["", "Out of memory", ""]]
    drive, said = sit(queue, plan)
    assert drive.failed == {"s-fp32-s1": "Out of memory"}
    assert "FAILED s-fp32-s1: Out of memory (dvc queue logs s-fp32-s1)" in said
    assert len(queue.ran) == 3


def test_a_mistake_is_not_tried_again_in_one_sitting_but_in_the_next(queue, plan):
    queue.fails["s-fp32-s1"] = [["error: data.path: not found", "ERROR: failed to reproduce"]]
    drive, _ = sit(queue, plan)
    assert drive.failed == {"s-fp32-s1": "data.path: not found"}
    drive, said = sit(queue, plan)
    assert said[:3] == ["3 of 4 experiments are finished already", "s-fp32-s1 failed earlier, tried once more",
                        "queued s-fp32-s1"]  # fmt: skip
    assert drive.failed == {}
    assert len(queue.ran) == 4


def kill_worker(queue):
    """The worker is gone; its task says Running for ever."""
    for entry in list(queue.rows.values()):
        if entry.state == "Running":
            queue.orphans.add(entry.revision)
    queue.workers = 0


@pytest.mark.parametrize("initializing", [0, 2])
def test_a_task_whose_worker_was_killed_is_queued_again(queue, plan, initializing):
    queue.initializing = initializing
    steps = 0

    def step(seconds):
        nonlocal steps
        queue.step(seconds)
        steps += 1
        if steps == 2:
            kill_worker(queue)

    _, said = sit(queue, plan, sleep=step)
    assert said.count("s-fp32-s1 lost its worker, queued again") == 1
    assert sorted(queue.ran) == sorted(task.name for task in tasks(plan))
    assert len(queue.started) > 1


def test_a_running_task_without_worker_is_waited_for_while_its_process_lives(queue, plan):
    """kill -9 of the worker leaves the experiment itself running: it must not be started a second time beside it."""
    queue.put(plan.task("fp32", 0))
    row = next(iter(queue.rows.values()))
    queue.rows[row.revision] = Entry(row.revision, row.name, "Running")
    drive = Drive(queue, plan, 1, lambda _: None, queue.step)
    drive.begin()
    for _ in range(5):
        drive._mend([plan.task("fp32", 0)], set(), fresh=False)
    assert [entry.state for entry in queue.rows.values()] == ["Running"]


def test_success_without_an_experiment_is_run_again(queue, plan):
    sit(queue, plan)
    queue.done = [experiment for experiment in queue.done if experiment.name != "s-fp32-s0"]
    sit(queue, plan)
    assert queue.ran.count("s-fp32-s0") == 2


def test_other_settings_under_the_same_name_are_refused(queue, plan):
    sit(queue, plan)
    other = make_plan("s", ("fp32",), (0,), ("debug=true", "pretrain.epochs=3"), PARAMS)[0]
    with pytest.raises(UserError) as caught:
        sit(queue, other)
    assert str(caught.value) == (
        "--name s: got experiment s-fp32-s0 with other settings (pretrain.epochs: 8 instead of 3); allowed: the same "
        "settings, or another --name"
    )
    assert len(queue.ran) == 4


def test_other_settings_waiting_in_the_queue_are_refused(queue, plan):
    queue.put(plan.task("fp32", 0))
    other = make_plan("s", ("fp32",), (0,), ("pretrain.epochs=3",), PARAMS)[0]
    with pytest.raises(UserError, match="got experiment s-fp32-s0 with other settings"):
        sit(queue, other)


def test_other_code_under_the_same_name_is_refused(queue, plan):
    queue.finish("s-fp32-s0", "0000000", baseline="b" * 40)
    with pytest.raises(UserError) as caught:
        sit(queue, plan)
    assert str(caught.value) == (
        "--name s: got experiment s-fp32-s0 of commit bbbbbbb while aaaaaaa is checked out; allowed: another --name "
        "(equal stages come from the cache), or that commit"
    )


def test_experiments_of_others_are_left_alone(queue, plan):
    queue.finish("mine", "0000000", baseline="b" * 40)
    queue.rows["fffffff"] = Entry("fffffff", "theirs", "Failed")
    sit(queue, plan)
    assert queue.rows["fffffff"].state == "Failed"


def test_changed_files_are_refused(queue, plan):
    queue.dirty = ["params.yaml"]
    with pytest.raises(UserError, match=r"workspace: got changed files \(params.yaml\); allowed: everything committed"):
        sit(queue, plan)
    assert queue.rows == {}


def test_a_commit_in_the_middle_ends_the_sitting_before_anything_of_it_is_queued(queue, plan):
    queue.fails["s-fp32-s0"] = [["Killed"]]

    def step(seconds):
        queue.step(seconds)
        queue.commit = "c" * 40

    with pytest.raises(UserError, match="workspace: got commit ccccccc checked out while the suite runs on aaaaaaa"):
        sit(queue, plan, sleep=step)
