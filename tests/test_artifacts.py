"""Files between stages: whole or not at all, equal bytes, one-line errors."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import yaml

from fairquant import artifacts
from fairquant.errors import ArtifactError, explain

ROOT = Path(__file__).resolve().parents[1]


class TestAtomic:
    """``atomic_path``."""

    def test_nothing_is_there_until_the_end(self, tmp_path):
        with artifacts.atomic_path(tmp_path / "deep/file") as partial:
            partial.write_text("x")
            assert not (tmp_path / "deep/file").exists()
        assert (tmp_path / "deep/file").read_text() == "x"
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]

    @pytest.mark.parametrize("folder", [False, True])
    def test_an_error_keeps_the_old_and_leaves_nothing(self, tmp_path, folder):
        target = tmp_path / "out"
        if folder:
            target.mkdir()
            (target / "old").write_text("old")
        else:
            target.write_text("old")
        with pytest.raises(RuntimeError), artifacts.atomic_path(target) as partial:
            if folder:
                partial.mkdir()
                (partial / "new").write_text("half")
            else:
                partial.write_text("half")
            raise RuntimeError
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert (target / "old" if folder else target).read_text() == "old"

    def test_a_folder_is_replaced_as_a_whole(self, tmp_path):
        for name in ("first", "second"):
            with artifacts.atomic_path(tmp_path / "out") as partial:
                (partial / "sub").mkdir(parents=True)
                (partial / f"sub/{name}").write_text(name)
        assert [path.name for path in (tmp_path / "out/sub").iterdir()] == ["second"]
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_a_killed_writer_leaves_no_artifact_and_is_cleaned_up_after(self, tmp_path):
        target = tmp_path / "out.json"
        program = (
            "import os, signal\nfrom fairquant import artifacts\n"
            f"with artifacts.atomic_path({str(target)!r}) as partial:\n"
            "    partial.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = subprocess.run([sys.executable, "-c", program])
        assert done.returncode == -signal.SIGKILL
        assert not target.exists()
        artifacts.write_json(target, {})
        assert [path.name for path in tmp_path.iterdir()] == ["out.json"]

    def test_data_is_synced_before_the_rename(self, tmp_path, monkeypatch):
        events = []
        monkeypatch.setattr(artifacts.os, "fsync", lambda _: events.append("sync"))
        replace = os.replace
        monkeypatch.setattr(artifacts.os, "replace", lambda *names: (events.append("rename"), replace(*names)))
        artifacts.write_text(tmp_path / "x", "y")
        assert events == ["sync", "rename", "sync"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``size`` bytes, as a full disk would: writing fails halfway."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestRefusingDisk:
    """What cannot be written leaves the old file alone, nothing else, and an error that names the file."""

    WRITERS = {
        "text": lambda path: artifacts.write_text(path, "x" * 5000),
        "json": lambda path: artifacts.write_json(path, {"x": "x" * 5000}),
        "tensors": lambda path: artifacts.write_tensors(path, {"x": np.zeros(5000)}, meta={}),
    }

    @pytest.mark.parametrize("kind", WRITERS)
    def test_too_large(self, tmp_path, kind):
        (tmp_path / "x").write_text("old")
        with largest_file(1000), pytest.raises(OSError) as caught:
            self.WRITERS[kind](tmp_path / "x")
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "x"))
        assert [path.name for path in tmp_path.iterdir()] == ["x"]
        assert (tmp_path / "x").read_text() == "old"

    def test_too_large_in_a_folder(self, tmp_path):
        with (
            largest_file(1000),
            pytest.raises(OSError) as caught,
            artifacts.atomic_path(tmp_path / "report") as partial,
        ):
            partial.mkdir()
            (partial / "small").write_text("x")
            (partial / "large").write_text("x" * 5000)
        assert caught.value.filename == str(tmp_path / "report")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("call", ["fsync", "replace"])
    def test_a_disk_that_is_full_only_at_the_end(self, tmp_path, monkeypatch, call):
        def refuse(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        (tmp_path / "x").write_text("old")
        monkeypatch.setattr(artifacts.os, call, refuse)
        with pytest.raises(OSError) as caught:
            artifacts.write_text(tmp_path / "x", "new")
        assert caught.value.filename == str(tmp_path / "x")
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x", "old")]

    def test_a_file_where_a_folder_should_be(self, tmp_path):
        (tmp_path / "models").write_text("")
        with pytest.raises(OSError) as caught:
            artifacts.write_text(tmp_path / "models/x", "y")
        assert explain(caught.value) is not None
        assert "models" in explain(caught.value)

    def test_a_folder_where_a_file_should_be_is_replaced_on_writing_and_told_on_reading(self, tmp_path):
        for name in ("x.json", "x.safetensors"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "inner").write_text("")
        with pytest.raises(ArtifactError, match=r"x.json: not readable \(a folder\); dvc repro writes it anew"):
            artifacts.read_json(tmp_path / "x.json")
        with pytest.raises(ArtifactError, match=r"x.safetensors: not readable \(a folder\)"):
            artifacts.read_tensors(tmp_path / "x.safetensors")
        artifacts.write_json(tmp_path / "x.json", {})
        assert artifacts.read_json(tmp_path / "x.json") == {}

    def test_room_is_taken_at_once(self, tmp_path):
        (tmp_path / "x").touch()
        artifacts.reserve(tmp_path / "x", 100_000)
        assert (tmp_path / "x").stat().st_blocks * 512 >= 100_000
        with largest_file(1000), pytest.raises(OSError) as caught:
            artifacts.reserve(tmp_path / "x", 200_000)
        assert caught.value.filename == str(tmp_path / "x")

    @pytest.mark.parametrize("error", [OSError(errno.EOPNOTSUPP, "no"), AttributeError("posix_fallocate")])
    def test_where_room_cannot_be_taken_nothing_happens(self, tmp_path, monkeypatch, error):
        def refuse(*_):
            raise error

        (tmp_path / "x").touch()
        monkeypatch.setattr(artifacts.os, "posix_fallocate", refuse, raising=False)
        artifacts.reserve(tmp_path / "x", 100)
        assert (tmp_path / "x").stat().st_size == 0


def test_the_stage_that_writes_a_file_is_the_one_of_dvc_yaml():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    outs = {}
    for stage, entry in stages.items():
        for out in (out for kind in ("outs", "metrics", "plots") for out in entry.get(kind, [])):
            outs[out if isinstance(out, str) else next(iter(out))] = stage
    assert {path: artifacts.anew(ROOT / path).split()[2] for path in outs} == outs
    assert artifacts.anew("data/prepared/meta.json") == "dvc repro prepare writes it anew (docs/faults.md)"
    assert artifacts.anew("elsewhere/models.json") == "dvc repro writes it anew (docs/faults.md)"


class TestJson:
    """``write_json`` and ``read_json``."""

    def test_numbers_are_plain_and_finite(self, tmp_path):
        value = {
            "a": np.float32(0.1), "b": np.int64(3), "c": float("nan"), "d": np.array([1.5, np.inf]), "e": (True, None),
            "female × <60": {1: 1 / 3},
        }  # fmt: skip
        artifacts.write_json(tmp_path / "x.json", value)
        assert artifacts.read_json(tmp_path / "x.json") == {
            "a": 0.1, "b": 3, "c": None, "d": [1.5, None], "e": [True, None], "female × <60": {"1": 0.333333},
        }  # fmt: skip
        assert "female × <60" in (tmp_path / "x.json").read_text(encoding="utf-8")

    def test_missing(self, tmp_path):
        with pytest.raises(ArtifactError, match=r"x.json: not found; run the stage that writes it \(dvc repro\)"):
            artifacts.read_json(tmp_path / "x.json")

    @pytest.mark.parametrize("data", [b"{", b"", b"\xff"])
    def test_broken(self, tmp_path, data):
        (tmp_path / "x.json").write_bytes(data)
        with pytest.raises(ArtifactError, match="x.json: not valid JSON"):
            artifacts.read_json(tmp_path / "x.json")

    def test_not_an_object(self, tmp_path):
        (tmp_path / "x.json").write_text("[1]")
        with pytest.raises(ArtifactError, match="x.json: got list; allowed: a JSON object"):
            artifacts.read_json(tmp_path / "x.json")


class TestTensors:
    """``write_tensors`` and ``read_tensors``."""

    ARRAYS = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a/ü": np.array([[1, 2], [3, 4]], dtype=np.uint8).T,
        "scalar": np.array(7, dtype=np.int64),
    }

    def test_what_is_written_is_read(self, tmp_path):
        artifacts.write_tensors(tmp_path / "x.safetensors", self.ARRAYS, meta={"k": ["ü", 1]})
        arrays, meta = artifacts.read_tensors(tmp_path / "x.safetensors")
        assert meta == {"k": ["ü", 1]}
        assert arrays.keys() == self.ARRAYS.keys()
        for name, array in self.ARRAYS.items():
            assert arrays[name].dtype == array.dtype
            np.testing.assert_array_equal(arrays[name], array)

    def test_safetensors_itself_reads_it(self, tmp_path):
        artifacts.write_tensors(tmp_path / "x", self.ARRAYS, meta={})
        read = safetensors.numpy.load_file(tmp_path / "x")
        np.testing.assert_array_equal(read["a/ü"], [[1, 3], [2, 4]])

    def test_bytes_depend_on_content_alone(self, tmp_path):
        digests = set()
        for name, items in (("a", self.ARRAYS.items()), ("other", reversed(self.ARRAYS.items()))):
            artifacts.write_tensors(tmp_path / name, dict(items), meta={"x": 1, "y": 2})
            digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
        assert len(digests) == 1

    def test_missing(self, tmp_path):
        with pytest.raises(ArtifactError, match="x: not found"):
            artifacts.read_tensors(tmp_path / "x")

    @pytest.mark.parametrize("keep", [0, 4, 30, -1])
    def test_truncated(self, tmp_path, keep):
        artifacts.write_tensors(tmp_path / "x", self.ARRAYS, meta={})
        data = (tmp_path / "x").read_bytes()
        (tmp_path / "x").write_bytes(data[:keep])
        with pytest.raises(ArtifactError, match="x: not a readable safetensors file") as error:
            artifacts.read_tensors(tmp_path / "x")
        assert "\n" not in str(error.value)

    def test_every_changed_byte_is_noticed(self, tmp_path):
        path = tmp_path / "x"
        artifacts.write_tensors(path, self.ARRAYS, meta={"k": ["ü", 1]})
        data = path.read_bytes()
        bits = np.random.default_rng(0).integers(0, 8, len(data)).tolist()
        for place, bit in enumerate(bits):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            with pytest.raises(ArtifactError, match="x: ") as error:
                artifacts.read_tensors(path)
            assert "\n" not in str(error.value)

    def test_changed_values_are_named(self, tmp_path):
        artifacts.write_tensors(tmp_path / "x", self.ARRAYS, meta={})
        data = bytearray((tmp_path / "x").read_bytes())
        data[-1] ^= 1
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(ArtifactError, match="x: got other content than its checksum says; dvc repro writes it"):
            artifacts.read_tensors(tmp_path / "x")

    def test_a_file_of_somebody_else(self, tmp_path):
        safetensors.numpy.save_file({"w": np.zeros(1)}, tmp_path / "x")
        with pytest.raises(ArtifactError, match="without a fairquant header"):
            artifacts.read_tensors(tmp_path / "x")

    def test_pickles_are_not_loaded(self, tmp_path):
        (tmp_path / "x").write_bytes(pickle.dumps({"w": [0.0] * 100}))
        with pytest.raises(ArtifactError, match="not a readable safetensors file"):
            artifacts.read_tensors(tmp_path / "x")
