"""The real prepare stage in its own process: exit codes, the one line on stderr, nothing half-written, kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

REPO = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "stages.prepare"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPO)}


def write_params(folder: Path, **params) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(COMMAND, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "data" / "prepared").iterdir())}


def folder_data(folder: Path) -> dict:
    raw = folder / "data" / "raw"
    raw.mkdir(parents=True)
    lines = ["image,label,group"]
    for index in range(40):
        Image.fromarray(np.full((9, 9, 3), index, np.uint8)).save(raw / f"{index}.png")
        lines.append(f"{index}.png,{'ab'[index % 2]},{'xy'[index // 2 % 2]}")
    (raw / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"name": "folder", "path": "data/raw", "image_size": 8}


def test_it_prepares_and_says_so(tmp_path):
    write_params(tmp_path, data=folder_data(tmp_path), workers=1)
    done = run(tmp_path)
    assert done.returncode == 0 and done.stdout == ""
    assert done.stderr == "prepared 40 images (train 28, val 4, test 8), groups: x, y\n"
    assert list(content(tmp_path)) == ["images.npy", "meta.json", "samples.csv"]


def test_bad_rows_are_one_line_exit_2_and_the_old_result_stays(tmp_path):
    data = folder_data(tmp_path)
    write_params(tmp_path, data=data, workers=1)
    assert run(tmp_path).returncode == 0
    before = content(tmp_path)
    (tmp_path / "data" / "raw" / "3.png").unlink()
    (tmp_path / "data" / "raw" / "4.png").write_bytes(b"broken")
    done = run(tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "error: 2 problems in the data: 1 missing file (row 4 no image file '3.png'); "
        "1 unreadable image (row 5 UnidentifiedImageError: cannot identify image file '4.png'); "
        "full list: data/problems.csv; mend them, or set data.bad_rows: drop\n"
    )
    assert content(tmp_path) == before
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["prepared", "problems.csv", "raw"]
    write_params(tmp_path, data={**data, "bad_rows": "drop"}, workers=1)
    done = run(tmp_path)
    assert done.returncode == 0
    assert done.stderr.splitlines()[:2] == ["dropped 1 rows: missing file", "dropped 1 rows: unreadable image"]


@pytest.mark.parametrize("name", ["folder", "fairface"])
def test_absent_data_is_one_line_and_nothing_is_written(tmp_path, name):
    write_params(tmp_path, data={"name": name})
    done = run(tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "expected " in done.stderr
    assert "data/raw" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_a_mistake_in_params_is_one_line_exit_2(tmp_path):
    write_params(tmp_path, datasets={"synthderm": {"difficulty": 2}})
    done = run(tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: params.yaml: datasets.synthderm.difficulty: got 2; allowed: a number in [0, 1]\n"


def test_killed_midway_it_leaves_nothing_and_the_next_run_gives_the_same_bytes(tmp_path):
    params = {
        "data": {"name": "synthderm", "image_size": 64},
        "datasets": {"synthderm": {"samples": 900}},
        "workers": 2,
    }
    killed, calm = tmp_path / "killed", tmp_path / "calm"
    for folder in (killed, calm):
        folder.mkdir()
        write_params(folder, **params)
    process = subprocess.Popen(COMMAND, cwd=killed, env=ENVIRONMENT, stderr=subprocess.DEVNULL, start_new_session=True)
    while not list(killed.glob("data/.prepared*.partial/images.npy")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "data" / "prepared").exists()
    if Path("/proc/self/stat").exists():
        wait_until_gone(process.pid)
    assert run(killed).returncode == run(calm).returncode == 0
    assert content(killed) == content(calm)
    assert [path.name for path in (killed / "data").iterdir()] == ["prepared"]


def wait_until_gone(session: int) -> None:
    """Wait until no living process of the session is left: decoding workers end with their parent."""
    deadline = time.monotonic() + 60
    while any(_belongs(path, session) for path in Path("/proc").glob("[0-9]*/stat")):
        assert time.monotonic() < deadline, "a worker outlives its killed parent"
        time.sleep(0.05)


def _belongs(stat: Path, session: int) -> bool:
    try:
        state, _, _, owner = stat.read_text().rpartition(")")[2].split()[:4]
    except (OSError, ValueError):
        return False
    return int(owner) == session and state not in "ZX"


def edit(lines: list[str], row: int, text: str) -> list[str]:
    """Return the csv lines with data row ``row`` (from 1) replaced."""
    return [*lines[:row], text, *lines[row + 1 :]]


DAMAGE = {
    "unknown label": (lambda lines: edit(lines, 5, "4.png,zebra,x"), "1 unknown label (row 5 got the label 'zebra'"),
    "empty group": (lambda lines: edit(lines, 5, "4.png,a,"), "1 empty group value (row 5 the group column 'group'"),
    "absent group": (
        lambda lines: (
            [lines[0] + ",split"]
            + [f"{line},{('train', 'val', 'test')[i % 3]}" for i, line in enumerate(edit(lines, 5, "4.png,a,rare")[1:])]
        ),
        "1 group absent from a split (the group 'rare' has no sample in train and test (train 0, val 1, test 0)",
    ),
    "duplicate id": (lambda lines: [*lines, lines[1]], "1 duplicate id (row 41 the id '0.png' stands in row 1 already"),
    "no such column": (lambda lines: [line.rpartition(",")[0] for line in lines], "'group'"),
    "all at once": (
        lambda lines: [*edit(edit(lines, 5, "4.png,zebra,x"), 6, "5.png,b,"), lines[1], "gone.png,a,x"],
        "error: 4 problems in the data: 1 unknown label (row 5 got the label 'zebra'; "
        "allowed: a | b); 1 empty group value",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_each_kind_of_bad_row(tmp_path, kind):
    damage, expected = DAMAGE[kind]
    data = folder_data(tmp_path)
    labels = tmp_path / "data" / "raw" / "labels.csv"
    labels.write_text("\n".join(damage(labels.read_text().splitlines())) + "\n", encoding="utf-8")
    write_params(tmp_path, data=data, datasets={"folder": {"class_names": ["a", "b"]}}, workers=1)
    done = run(tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: ")
    assert expected in done.stderr
    assert not (tmp_path / "data" / "prepared").exists()
    assert not list(tmp_path.rglob("*.partial"))
