"""A stage in its own process on a machine that fails it: one line on stderr, exit code 2, nothing half-written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
PREPARE = [sys.executable, "-m", "stages.prepare"]
OWN = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}  # which speaks on stderr
ENVIRONMENT = {**OWN, "PYTHONPATH": str(REPO)}
SMALL = {"data": {"name": "synthderm", "image_size": 16}, "datasets": {"synthderm": {"samples": 600}}, "workers": 1}
SEVERAL = {"data": {"name": "synthderm", "image_size": 64}, "datasets": {"synthderm": {"samples": 900}}, "workers": 2}


@pytest.fixture
def folder(tmp_path):
    """A project folder whose name has a space and letters beyond ASCII."""
    path = tmp_path / "my größe 数"
    path.mkdir()
    (path / "params.yaml").write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    return path


def run(command, folder, **environment):
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT | environment, capture_output=True, text=True, encoding="utf-8",
        errors="replace", timeout=300,
    )  # fmt: skip


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mounted(script: str) -> list[str]:
    """Return the prefix of a command that runs where ``script`` has mounted something; skip where one may not."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no mounts (unshare -rm)")
    return ["unshare", "-rm", "sh", "-ec", f'{script}\nexec "$@"', "sh"]


def test_a_full_disk(folder):
    (folder / "data").mkdir()
    done = run([*mounted("mount -t tmpfs -o size=256k none data"), *PREPARE], folder)
    assert (done.returncode, done.stderr) == (
        2, "error: data/prepared: No space left on device; free some and run dvc repro again\n",
    )  # fmt: skip


@pytest.mark.parametrize("place", [".", "data"])
def test_a_read_only_folder(folder, place):
    (folder / "data").mkdir()
    script = f"mount --bind {place} {place}\nmount -o remount,ro,bind {place}\ncd ."
    done = run([*mounted(script + '\ncd "$PWD"'), *PREPARE], folder)
    assert (done.returncode, done.stderr) == (
        2, "error: data/prepared: Read-only file system; work in a folder that can be written\n",
    )  # fmt: skip


def test_a_file_where_a_folder_belongs(folder):
    (folder / "data").write_text("")
    done = run(PREPARE, folder)
    assert done.returncode == 2
    assert done.stderr.endswith("; move the file away that lies where a folder belongs\n")
    assert done.stderr.startswith("error: data") and done.stderr.count("\n") == 1


MEMORY = """
import resource
from fairquant import stage

def main(config):
    import numpy as np
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
    np.zeros(1 << 30)

stage.run(main, reads=())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_no_memory(folder):
    done = run([sys.executable, "-c", MEMORY], folder)
    assert (done.returncode, done.stderr) == (
        2,
        "error: out of memory (asked for 8.00 GiB); lower batch_size (of the stage's section) or workers, or close "
        "other programs\n",
    )


@pytest.mark.parametrize(
    "environment",
    [{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"HOME": "/nonexistent"}, {"TZ": "broken"}],
)
def test_no_locale_no_home_no_time_zone(folder, environment):
    done = run(PREPARE, folder, **environment)
    assert done.returncode == 0, done.stderr
    assert names(folder / "data/prepared") == ["images.npy", "meta.json", "samples.csv"]


@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", "2>/dev/full"])
def test_nobody_listens(folder, streams):
    command = ["sh", "-c", f'exec "$@" {streams}', "sh", *PREPARE]
    assert run(command, folder).returncode == 0
    assert names(folder / "data/prepared") == ["images.npy", "meta.json", "samples.csv"]
    (folder / "params.yaml").write_text("seed: x\n")
    assert run(command, folder).returncode == 2


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find workers")
class TestWorkers:
    """Several decoding processes."""

    def begin(self, folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
        """Start prepare; return it and its workers as soon as they decode."""
        (folder / "params.yaml").write_text(yaml.safe_dump(SEVERAL), encoding="utf-8")
        process = subprocess.Popen(
            PREPARE, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        while len(found := workers(process.pid)) < 2:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.01)
        return process, found

    def test_one_that_is_killed_is_one_line(self, folder):
        process, found = self.begin(folder)
        os.kill(found[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (
            2,
            "error: a decoding process was killed (out of memory?); run dvc repro again, or set workers to a smaller "
            "number\n",
        )
        assert names(folder / "data") == []

    def test_ctrl_c_ends_all_of_them_without_a_word(self, folder):
        process, found = self.begin(folder)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (130, "")
        assert names(folder / "data") == []
        assert [worker for worker in found if Path(f"/proc/{worker}").exists()] == []


def workers(process: int) -> list[int]:
    """Return the decoding processes among the children of ``process``."""
    found = []
    for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
        try:
            words = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        if b"spawn_main" in words:
            found.append(int(child))
    return found
