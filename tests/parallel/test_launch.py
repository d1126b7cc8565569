"""A stage in several processes: what it prints, how it ends, whom it leaves behind. Real processes, a tiny stage."""

from __future__ import annotations

import os
import pty
import signal
import socket
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parallel.nursery import Done, Nursery, gone, nursery

pytestmark = pytest.mark.xdist_group("parallel")
SAID = "2 processes, sum 11"
MISTAKE = "error: image 7: not an image; allowed: jpeg"


@pytest.fixture(scope="module")
def maker() -> Iterator[Nursery]:
    with nursery() as started:
        yield started


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text("device: cpu\nparallel: {devices: 2}\n")
    (tmp_path / "stderr").touch()
    return tmp_path


def run(maker: Nursery, folder: Path, what: str, **environ: str) -> Done:
    return maker.run("tests.parallel.tiny", folder, TINY=what, **environ)


def pids(folder: Path) -> list[int]:
    return [int((folder / f"process-{rank}").read_text().split()[0]) for rank in (0, 1)]


def test_two_processes_add_up_and_one_speaks(maker, folder):
    done = run(maker, folder, "fine")
    assert (done.code, done.out) == (0, "")
    assert (done.lines[0], last(done)) == (SAID, [])
    assert done.err.count("UserWarning: a warning") == 1


def test_one_process_starts_none(maker, folder):
    (folder / "params.yaml").write_text("device: cpu\n")
    done = run(maker, folder, "fine")
    assert done.code == 0
    assert done.lines[0] == "1 processes, sum 1"


def test_auto_is_one_process_without_gpus(maker, folder):
    (folder / "params.yaml").write_text("device: cpu\nparallel: {devices: auto}\n")
    assert run(maker, folder, "fine").lines[0] == "1 processes, sum 1"


def last(done: Done) -> list[str]:
    """What is said besides what every run says."""
    return [line for line in done.lines if line != SAID and "a warning" not in line]


def test_a_mistake_of_all_is_one_line(maker, folder):
    done = run(maker, folder, "mistake")
    assert (done.code, last(done)) == (2, [MISTAKE])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_mistake_of_one_names_it(maker, folder, rank):
    done = run(maker, folder, f"mistake:{rank}")
    assert (done.code, last(done)) == (2, [MISTAKE.replace("error:", f"error: process {rank + 1} of 2:")])


def test_different_mistakes_are_one_line(maker, folder):
    done = run(maker, folder, "differ")
    lines = [f"error: process {n + 1} of 2: image {n}: not an image; allowed: jpeg" for n in (0, 1)]
    assert done.code == 2
    assert last(done) in ([lines[0]], [lines[1]])


@pytest.mark.parametrize("who", ["bug", "bug:0", "bug:1"])
def test_a_bug_has_one_traceback(maker, folder, who):
    done = run(maker, folder, who)
    assert done.code == 1
    assert done.err.count("Traceback") == 1
    assert last(done)[-1].endswith("ZeroDivisionError: a bug")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_stage(maker, folder, rank):
    began = time.monotonic()
    done = run(maker, folder, f"kill:{rank}")
    line = f"error: process {rank + 1} of 2 was killed by SIGKILL, as the system does when memory runs out"
    assert (done.code, last(done)) == (128 + signal.SIGKILL, [line])
    assert gone(pids(folder), 0)
    assert time.monotonic() - began < 60


def test_an_exit_is_passed_on(maker, folder):
    done = run(maker, folder, "exit")
    assert (done.code, last(done)) == (5, [])


def begin_to_hang(maker: Nursery, folder: Path, **options: str) -> int:
    pid = maker.begin("tests.parallel.tiny", folder, TINY="hang", **options)
    deadline = time.monotonic() + 60
    while not all((folder / f"process-{rank}").exists() for rank in (0, 1)) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    return pid


def test_an_interrupt_leaves_nobody(maker, folder):
    os.kill(begin_to_hang(maker, folder), signal.SIGINT)
    done = maker.end(folder)
    assert (done.code, last(done)) == (130, [])
    assert gone(pids(folder), 0)


def test_an_interrupt_of_one_ends_all(maker, folder):
    begin_to_hang(maker, folder)
    os.kill(pids(folder)[1], signal.SIGINT)
    done = maker.end(folder)
    assert (done.code, last(done)) == (130, [])


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_processes_do_not_outlive_the_stage(maker, folder, how):
    os.kill(begin_to_hang(maker, folder), how)
    assert maker.end(folder).code == -how
    assert gone(pids(folder))


def test_only_the_first_draws_bars(maker, folder):
    reading, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    maker.begin("tests.parallel.tiny", folder, TINY="fine", terminal=os.ttyname(terminal))
    done = maker.end(folder)
    os.close(terminal)
    drawn = b""
    try:
        while part := os.read(reading, 4096):
            drawn += part
    except OSError:  # the end of a terminal without a writer
        os.close(reading)
    assert done.code == 0, drawn
    assert drawn.count(b"bar: 100%") == 1
    assert [(folder / f"process-{rank}").read_text().split()[2] for rank in (0, 1)] == ["True", "False"]


@pytest.mark.parametrize(
    ("params", "environ", "line"),
    [
        ("parallel: {devices: x}", {}, "error: params.yaml: parallel.devices: got 'x'; allowed: a whole number in"),
        (
            "parallel: {nodes: 2}",
            {},
            "error: parallel.nodes: got 2, with nothing that starts processes on other machines; allowed: 1, or a",
        ),
        (
            "parallel: {devices: 3}",
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
            "error: parallel.devices: got 3, where torchrun started 2 on each machine; allowed: 2, or auto, or 1 with",
        ),
    ],
)
def test_what_cannot_start_is_one_line(maker, folder, params, environ, line):
    (folder / "params.yaml").write_text(f"device: cpu\n{params}\n")
    done = run(maker, folder, "fine", **environ)
    assert done.code == 2
    assert len(done.lines) == 1
    assert done.lines[0].startswith(line)


def test_an_address_that_is_taken_is_one_line(maker, folder):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        world = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
        done = run(maker, folder, "fine", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **world)
    assert (done.code, len(done.lines)) == (2, 1)
    assert done.lines[0].startswith(f"error: 127.0.0.1:{port}: process 1 of 2 did not meet the others there; ")


def test_what_all_processes_of_a_machine_find_before_they_meet_one_says(maker, folder):
    (folder / "params.yaml").write_text("seed: x\n")
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    said = [run(maker, folder, "fine", RANK=rank, LOCAL_RANK=rank, **world) for rank in ("0", "1")]
    assert [done.code for done in said] == [2, 2]
    assert [len(done.lines) for done in said] == [1, 0]
