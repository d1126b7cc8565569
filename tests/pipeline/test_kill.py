"""kill -9 during a stage loses nothing, in the workspace and in DVC's queue: a later run ends as one undisturbed.

The runs compared are two copies of the project, in folders of different names, with other hash seeds and time zones.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairquant import artifacts
from fairquant.data.store import Store
from tests.pipeline.conftest import Workspace, copy_code

pytestmark = [
    pytest.mark.xdist_group("kill"),
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc to look into a running stage"),
]


def stage_process(group: int, module: str) -> Path | None:
    """Return the /proc entry of ``python -m module`` in the process group, or None."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if module.encode() in words and os.getpgid(int(entry.name)) == group:
                return entry
        except (ProcessLookupError, FileNotFoundError):
            continue
    return None


def has_loaded_torch(entry: Path) -> bool:
    try:
        return "libtorch_cpu" in (entry / "maps").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill_when(workspace, stage: str, seen: Callable[[Path], bool]) -> None:
    """Start ``dvc repro assign`` and kill it with the stage it runs as soon as ``seen`` holds for that stage."""
    process = workspace.start("dvc", "repro", "assign")
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        entry = stage_process(process.pid, f"stages.{stage}")
        if entry is not None and seen(entry):
            break
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    lock = workspace.path / "dvc.lock"
    finished = yaml.safe_load(lock.read_text())["stages"] if lock.exists() else {}
    assert stage not in finished, f"{stage} had ended before it was killed"


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Workspace]:
    """Two copies of the project: one has been run undisturbed, the other will be killed again and again."""
    folder = tmp_path_factory.mktemp("copies")
    undisturbed, disturbed = copy_code(folder / "größer"), copy_code(folder / "another copy")
    for workspace in (undisturbed, disturbed):
        workspace.set_params(debug=False, datasets__synthderm__samples=600, pretrain__epochs=3, quantize__epochs=6)
        workspace.set_params(export__formats=["packed", "onnx"], export__runtimes=["onnxruntime"])
    undisturbed.environment |= {"PYTHONHASHSEED": "1", "TZ": "UTC"}
    disturbed.environment |= {"PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo"}
    undisturbed.run("dvc", "repro")
    return undisturbed, disturbed


def test_killed_stages_end_with_the_same_metrics(copies):
    undisturbed, disturbed = copies
    path = disturbed.path

    kill_when(disturbed, "prepare", lambda _: (path / "data/.prepared.partial").exists())
    assert not (path / "data/prepared").exists()
    kill_when(disturbed, "pretrain", lambda _: any((path / ".fairquant/resume").glob("*/*.pt")))
    assert len(Store.open(path / "data/prepared")) == 600
    assert not (path / "models/pretrained.safetensors").exists()
    kill_when(disturbed, "importance", has_loaded_torch)
    artifacts.read_tensors(path / "models/pretrained.safetensors")
    assert not (path / "models/importance.safetensors").exists()

    disturbed.run("dvc", "repro", "assign")
    for name in (
        "metrics/pretrain.json",
        "metrics/bits.json",
        "models/pretrained.safetensors",
        "models/bits.safetensors",
    ):
        assert (path / name).read_bytes() == (undisturbed.path / name).read_bytes(), name
    assert not list(path.glob("[dm]*/.*.partial"))


def exp_stage(root: Path, stage: str) -> int | None:
    """Return the process of ``stage`` that DVC's queue runs in a copy of the workspace ``root``."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            here = (entry / "cwd").readlink().is_relative_to(root / ".dvc/tmp/exps")
            if here and f"stages.{stage}".encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                return int(entry.name)
        except OSError:
            continue
    return None


def wait_for(look: Callable[[], Any]) -> Any:
    """Return what ``look`` sees as soon as it sees something."""
    end = time.monotonic() + 120
    while not (found := look()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
    return found


def wait_for_state(workspace: Workspace, name: str, *states: str) -> str:
    """Return the state of a queued experiment once it is one of ``states``."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        rows = workspace.run("dvc", "queue", "status").stdout.splitlines()
        row = next(row for row in rows if name in row.split())
        if row.split()[-1] in states:
            return row.split()[-1]
        time.sleep(4)  # asking costs a second of a core that the run needs
    raise AssertionError(f"{name} is not {' or '.join(states)}: {row}")


def test_a_run_killed_in_the_queue_goes_on_when_it_is_queued_again(copies):
    undisturbed, disturbed = copies
    disturbed.commit("assigned")
    resume = disturbed.path / ".fairquant/resume"

    disturbed.run("dvc", "exp", "run", "--queue", "-n", "killed")
    disturbed.start("dvc", "queue", "start").wait()  # whose worker would keep a pipe open
    process = wait_for(lambda: exp_stage(disturbed.path, "quantize"))
    wait_for(lambda: list(resume.glob("*/last.pt")))
    os.kill(process, signal.SIGKILL)
    assert wait_for_state(disturbed, "killed", "Failed", "Success") == "Failed"
    assert list(resume.glob("*/last.pt")), "the checkpoint does not lie in the project that queued the run"

    disturbed.run("dvc", "exp", "run", "--queue", "-n", "again")
    disturbed.start("dvc", "queue", "start").wait()  # whose worker would keep a pipe open
    assert wait_for_state(disturbed, "again", "Failed", "Success") == "Success"
    log = disturbed.run("dvc", "queue", "logs", "again").stdout
    assert re.search(r"resuming after epoch [1-5] of 6", log), log
    assert not resume.exists()
    disturbed.run("dvc", "exp", "apply", "again")
    assert outputs(disturbed) == outputs(undisturbed)
    assert metrics(disturbed) == metrics(undisturbed)


def outputs(workspace: Workspace) -> dict[str, str]:
    """Return the hash of every output of every stage."""
    stages = yaml.safe_load((workspace.path / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def metrics(workspace: Workspace) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((workspace.path / "metrics").glob("*.json"))}
