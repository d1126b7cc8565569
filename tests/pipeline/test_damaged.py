"""Damaged artifacts and a damaged DVC cache: noticed, told on one line, and mended by the command that is named."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.pipeline.conftest import ROOT, Workspace

pytestmark = pytest.mark.xdist_group("dvc")

FOLDERS = ("data/prepared", "models", "metrics", "plots")

READERS = {
    "data/prepared/images.npy": "pretrain",
    "data/prepared/samples.csv": "pretrain",
    "data/prepared/meta.json": "importance",
    "models/pretrained.safetensors": "baseline",
    "models/pretrained.json": "assign",
    "models/importance.safetensors": "assign",
    "models/bits.safetensors": "quantize",
    "models/quantized.safetensors": "evaluate",
    "models/baseline_predictions.safetensors": "evaluate",
    "models/quantized_predictions.safetensors": "export",
    "metrics/bits.json": "report",
    "metrics/quantize.json": "report",
    "metrics/evaluate.json": "report",
    "metrics/export.json": "report",
    "plots/bits/layers.csv": "report",
    "plots/bits/bits.csv": "report",
    "plots/quantize/curve.csv": "report",
    "plots/pretrain/training.log": "report",
}
"""Files handed on, and a stage that reads each."""

TEXT = (".csv", ".json", ".log")


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    """Change one bit of the header's tenth byte, which no text survives."""
    return data[:9] + bytes([data[9] ^ 0x80]) + data[10:]


def foreign(data: bytes) -> bytes:
    return b"{}\n"


@pytest.fixture(scope="module")
def finished(reproduced: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with everything the stages of a finished run have written."""
    folder = tmp_path_factory.mktemp("finished")
    for name in FOLDERS:
        shutil.copytree(reproduced.path / name, folder / name)
    shutil.copy(reproduced.path / "params.yaml", folder)
    return folder


@pytest.fixture
def change(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Return what gives out the path of a file to damage; afterwards it is as it was."""
    monkeypatch.chdir(finished)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8"))
    kept: dict[Path, bytes] = {}

    def give(name: str) -> Path:
        path = finished / name
        kept[path] = path.read_bytes()
        return path

    yield give
    for path, data in kept.items():
        if path.is_dir():
            path.rmdir()
        path.write_bytes(data)


def refusal(stage: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run ``stage``, which has to end with exit code 2, and return the line it prints."""
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / f"stages/{stage}.py"), run_name="__main__")
    assert stop.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1, errors
    return errors


@pytest.mark.parametrize("damage", [truncated, flipped, foreign])
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_artifact_is_one_line(change, capsys, name, damage):
    if (damage is truncated and name.endswith((".log", "curve.csv"))) or (damage is foreign and name.endswith(".log")):
        pytest.skip("still a text: DVC notices (test_dvc_notices_a_changed_file_and_restores_it)")
    path = change(name)
    path.write_bytes(damage(path.read_bytes()))
    line = refusal(READERS[name], capsys)
    assert name in line or (name.startswith("data/prepared/") and "data/prepared" in line)


@pytest.mark.parametrize("name", READERS)
def test_a_folder_in_place_of_an_artifact_is_one_line(change, capsys, name):
    path = change(name)
    path.unlink()
    path.mkdir()
    line = refusal(READERS[name], capsys)
    assert line.startswith(f"error: {name}: ")


@pytest.mark.parametrize("name", [name for name in READERS if name.endswith(".safetensors")])
@pytest.mark.parametrize("other", ["models/bits.safetensors", "models/pretrained.safetensors"])
def test_an_artifact_of_another_kind_is_one_line(change, finished, capsys, name, other):
    if name == other:
        pytest.skip("the same kind")
    change(name).write_bytes((finished / other).read_bytes())
    assert refusal(READERS[name], capsys).startswith(f"error: {name}: got ")


@pytest.mark.parametrize("name", [name for name in READERS if name.endswith(".safetensors")])
def test_changed_weights_are_noticed(change, capsys, name):
    path = change(name)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    line = refusal(READERS[name], capsys)
    assert re.fullmatch(
        rf"error: {name}: got other content than its checksum says; dvc repro \w+ writes it anew \(docs/faults.md\)\n",
        line,
    )


class TestDvc:
    """What DVC does about it, on the real commands."""

    BITS = "models/bits.safetensors"

    @pytest.fixture
    def cached(self, reproduced):
        """Return the cache's copy of the bits, which is put back afterwards with the artifact."""
        lock = yaml.safe_load((reproduced.path / "dvc.lock").read_text())["stages"]["assign"]["outs"]
        digest = next(out["md5"] for out in lock if out["path"] == self.BITS)
        path = reproduced.path / f".dvc/cache/files/md5/{digest[:2]}/{digest[2:]}"
        good = path.read_bytes()
        yield path
        assert path.read_bytes() == good
        assert (reproduced.path / self.BITS).read_bytes() == good
        assert "up to date" in reproduced.run("dvc", "status").stdout

    def test_dvc_notices_a_changed_file_and_restores_it(self, reproduced, cached):
        path = reproduced.path / self.BITS
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        assert re.search(r"modified: +models/bits", reproduced.run("dvc", "status").stdout)
        assert "checking out outputs" in reproduced.run("dvc", "repro", "assign").stdout

    def test_a_removed_cache_entry_is_told_and_repro_writes_it_anew(self, reproduced, cached):
        cached.unlink()
        (reproduced.path / self.BITS).unlink()
        done = reproduced.run("dvc", "checkout", self.BITS, check=False)
        assert (done.returncode, "Checkout failed" in done.stderr) == (255, True)
        assert "Running stage 'assign'" in reproduced.run("dvc", "repro", "assign").stdout

    def test_an_altered_cache_entry_is_noticed_by_the_stage_and_mended_as_documented(self, reproduced, cached):
        mode = cached.stat().st_mode
        cached.chmod(0o644)
        cached.write_bytes(cached.read_bytes()[:-1] + b"x")
        cached.chmod(mode)
        (reproduced.path / self.BITS).unlink()
        reproduced.run("dvc", "checkout", self.BITS)  # DVC trusts entries that are read-only
        done = reproduced.run("python", "-m", "stages.quantize", check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "models/bits.safetensors: got other content than its checksum says; dvc repro assign" in done.stderr
        reproduced.run("chmod", "-R", "u+w", ".dvc/cache/files")
        reproduced.run("dvc", "checkout")
        assert "Running stage 'assign'" in reproduced.run("dvc", "repro", "assign").stdout

    def test_two_at_once_the_second_is_told_and_the_first_unharmed(self, reproduced, cached):
        code, seen, go = (reproduced.path / name for name in ("stages/assign.py", "seen.partial", "go.partial"))
        wait = "\n\nimport pathlib, time\npathlib.Path('seen.partial').touch()\n"
        wait += "while not pathlib.Path('go.partial').exists(): time.sleep(0.05)\n\n"
        code.write_text(code.read_text().replace("\n\n", wait, 1))
        first = reproduced.start("dvc", "repro", "assign")
        while not seen.exists():
            assert first.poll() is None, "it ended before the second began"
            time.sleep(0.05)
        second = reproduced.run("dvc", "repro", "assign", check=False)
        assert second.returncode == 255
        assert re.search(r"is busy, it is being blocked by:\s+\(PID \d+\): .*dvc repro assign", second.stderr)
        go.touch()
        assert first.wait(120) == 0
        assert reproduced.run("dvc", "status", "assign").stdout.strip() == "Data and pipelines are up to date."
        for path in (seen, go):
            path.unlink()
        reproduced.run("git", "checkout", "-q", ".")
