"""What the process that starts others makes of how they end; here they are small programs without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fairquant.parallel import supervise
from fairquant.parallel.supervise import LOST

PROGRAM = """
import os, signal, sys, time
if "RANK" not in os.environ:
    from fairquant.parallel import supervise
    supervise.GRACE = 1.0
    raise SystemExit(supervise.supervise(len(sys.argv) - 1))
what = sys.argv[1 + int(os.environ["RANK"])]
if what == "hang":
    time.sleep(60)
if what.startswith("-"):
    os.kill(os.getpid(), -int(what))
raise SystemExit(int(what))
"""


def run(tmp_path: Path, *ends: object) -> tuple[int, str]:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "program.py", *map(str, ends)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=50,
    )
    return done.returncode, done.stderr


KILLED = "error: process 1 of 2 was killed by SIGKILL, as the system does when memory runs out\n"


@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [
        ((0, 0), 0, ""),
        ((0, 2), 2, ""),
        (("hang", 2), 2, ""),
        ((LOST, 2), 2, ""),
        ((-9, "hang"), 137, KILLED),
        ((-9, LOST), 137, KILLED),
        (("hang", -11), 139, "error: process 2 of 2 was killed by SIGSEGV\n"),
        ((LOST, LOST), LOST, "error: the 2 processes lost contact with one another\n"),
        ((0,), 0, ""),
    ],
)
def test_how_they_end_is_how_it_ends(tmp_path, ends, code, said):
    assert run(tmp_path, *ends) == (code, said)


def test_their_environments(monkeypatch):
    monkeypatch.setattr(supervise, "cores", lambda: 8)
    first, second, third = supervise.environments(3, {"HOME": "/h", "RANK": "7"})
    assert [one["RANK"] for one in (first, second, third)] == ["0", "1", "2"]
    assert [one["LOCAL_RANK"] for one in (first, second, third)] == ["0", "1", "2"]
    assert {one["MASTER_PORT"] for one in (first, second, third)} == {first["MASTER_PORT"]}
    shared = {"HOME": "/h", "OMP_NUM_THREADS": "2", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}
    assert shared.items() <= second.items()


def test_threads_that_are_set_stay(monkeypatch):
    monkeypatch.setattr(supervise, "cores", lambda: 8)
    assert supervise.environments(2, {"OMP_NUM_THREADS": "5"})[1]["OMP_NUM_THREADS"] == "5"
    assert supervise.environments(16, {})[0]["OMP_NUM_THREADS"] == "1"
