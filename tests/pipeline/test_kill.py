"""kill -9 during a stage loses nothing: ``dvc repro`` then ends with the metrics of an undisturbed run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fairquant import artifacts
from fairquant.data.store import Store

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


def test_killed_stages_end_with_the_same_metrics(make_workspace):
    undisturbed, disturbed = make_workspace(), make_workspace()
    for workspace in (undisturbed, disturbed):
        workspace.set_params(debug=False, datasets__synthderm__samples=600, pretrain__epochs=3)
    undisturbed.run("dvc", "repro", "assign")
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
