"""kill -9 during a stage loses nothing: ``dvc repro`` then ends with the metrics of an undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fairquant import artifacts

pytestmark = pytest.mark.xdist_group("kill")


def wait_for_stage(process: subprocess.Popen[str], module: str, seconds: float = 120) -> int:
    """Return the pid of the running ``python -m module`` in the process group of ``process``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                same_group = os.getpgid(int(entry.name)) == process.pid
            except (ProcessLookupError, FileNotFoundError):
                continue
            if same_group and module.encode() in words:
                return int(entry.name)
        time.sleep(0.02)
    raise AssertionError(f"{module} was never seen running")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc to find the stage's process")
def test_killed_stages_end_with_the_same_metrics(make_workspace):
    undisturbed, disturbed = make_workspace(), make_workspace()
    undisturbed.run("dvc", "repro", "assign")
    for stage, delay in (("prepare", 0.7), ("pretrain", 6.0), ("importance", 4.0)):
        process = disturbed.start("dvc", "repro", "assign")
        wait_for_stage(process, f"stages.{stage}")
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        leftovers = [path for path in disturbed.path.glob("**/*.partial") if ".dvc" not in path.parts]
        finished = list((disturbed.path / "models").glob("importance.safetensors"))
        assert stage != "importance" or finished or not leftovers or all(p.name.startswith(".") for p in leftovers)
    disturbed.run("dvc", "repro", "assign")
    for name in ("pretrain", "bits"):
        path = f"metrics/{name}.json"
        assert artifacts.read_json(disturbed.path / path) == artifacts.read_json(undisturbed.path / path)
