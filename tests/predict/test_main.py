"""``python -m fairquant.predict``: what it prints and writes, its exit codes, and what it needs to be installed."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fairquant.export.runtimes import RUNTIMES
from fairquant.predict import Predictor
from fairquant.predict.__main__ import main
from tests.predict.conftest import CLASSES, write_model

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("numpy", "pillow", "onnxruntime", "safetensors", "tqdm")
"""What docs/predict.md tells people to install."""

ONLY_WHAT_IS_NEEDED = """
import json, sys
ALLOWED = {"fairquant", "numpy", "PIL", "safetensors", "tqdm", "coverage", *TOO, *sys.stdlib_module_names}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
before = set(sys.modules)
from fairquant.predict.__main__ import main
code = main(json.loads(sys.argv[1]))
loaded = {name.partition(".")[0] for name in set(sys.modules) - before if sys.modules[name] is not None}
loaded -= {"__mp_main__", "coverage"}
print(json.dumps([code, sorted(loaded - set(sys.stdlib_module_names))]), file=sys.stderr)
"""


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    done = capsys.readouterr()
    return code, done.out, done.err


def run_apart(*arguments: object, also: tuple[str, ...] = ("onnxruntime",), program: str = ONLY_WHAT_IS_NEEDED):
    """Run where nothing can be imported but what is needed: (done, exit code, modules that were loaded)."""
    given = json.dumps([str(argument) for argument in arguments])
    command = [sys.executable, "-c", f"TOO = {also!r}\n{program}", given]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8")
    code, loaded = json.loads(done.stderr.splitlines()[-1])
    return done, code, set(loaded)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_a_table_for_people(model, images, capsys):
    paths = images("1.png", "10.png", "9 ü.png")
    code, out, err = run(capsys, model, paths[0].parent, "--threads", 1)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["image", "class", "probability"]
    expected = Predictor.open(model, threads=1).predict([paths[0], paths[2], paths[1]])
    for line, answer in zip(lines[1:], expected, strict=True):
        assert line.startswith(f"{answer.image} ") and line.endswith(f"{answer.probability:.4f}")
        assert f"  {answer.label} " in line


def test_top(model, images, capsys):
    code, out, _ = run(capsys, model, *images("1.png"), "--top", 2, "--threads", 1)
    [answer] = Predictor.open(model, threads=1).predict(images("1.png"))
    assert code == 0
    cells = [cell for cell in out.splitlines()[1].split("  ") if cell.strip()]
    assert [cell.strip() for cell in cells[1:]] == [
        text for name, share in answer.top(2) for text in (name, f"{share:.4f}")
    ]


@pytest.mark.parametrize("runtime", sorted(RUNTIMES))
def test_a_csv_in_a_file_and_on_standard_output(model, images, capsys, tmp_path, runtime):
    paths = images(*(f"{number}.png" for number in range(5)))
    options = (model, paths[0].parent, "--threads", 1, "--batch-size", 2, "--runtime", runtime)
    assert run(capsys, *options, "--out", tmp_path / "p.csv") == (0, "", "")
    text = (tmp_path / "p.csv").read_text(encoding="utf-8")
    assert run(capsys, *options, "--out", "-") == (0, text, "")
    found = rows(text)
    assert [row["image"] for row in found] == [str(path) for path in paths]
    for row, answer in zip(found, Predictor.open(model, runtime=runtime, threads=1).predict(paths), strict=True):
        assert row["class"] == answer.label
        assert [float(row[name]) for name in CLASSES] == pytest.approx(list(answer.probabilities.values()), rel=1e-5)


def test_unreadable_images_are_named_and_the_others_predicted(model, images, capsys, tmp_path):
    paths = images("1.png", "2.png", "3.png", "4.png")
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    paths[3].write_text("no image")
    code, out, err = run(capsys, model, *paths, "--out", "-", "--threads", 1)
    assert code == 1
    assert [row["image"] for row in rows(out)] == [str(paths[0]), str(paths[2])]
    lines = err.splitlines()
    assert lines[0].startswith(f"error: {paths[1]}: not a readable image (")
    assert lines[1:] == [
        f"error: {paths[3]}: not a readable image (cannot identify image file)",
        "error: 2 of 4 images could not be read",
    ]
    assert run(capsys, model, *paths, "--out", tmp_path / "p.csv", "--threads", 1)[0] == 1
    assert (tmp_path / "p.csv").read_text(encoding="utf-8") == out


def test_recursive(model, images, capsys):
    [path] = images("1.png")
    code, _, err = run(capsys, model, path.parents[1])
    assert code == 2 and "got no images; allowed: files named .avif" in err
    code, out, _ = run(capsys, model, path.parents[1], "--recursive", "--threads", 1)
    assert code == 0 and str(path) in out


class TestMistakes:
    """One line on stderr, exit code 2, nothing on standard output."""

    def check(self, capsys, text: str, *arguments: object) -> None:
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {text}") and err.count("\n") == 1

    def test_no_image(self, model, tmp_path, capsys):
        self.check(capsys, f"{tmp_path / 'a.jpg'}: not found; allowed: image files and", model, tmp_path / "a.jpg")

    def test_no_model(self, images, tmp_path, capsys):
        [path] = images("1.png")
        self.check(capsys, f"{tmp_path / 'm.onnx'}: not found", tmp_path / "m.onnx", path)
        self.check(capsys, f"{path}: not a whole ONNX file (", path, path)
        foreign = write_model(tmp_path / "foreign.onnx", entries={"a": "b"})
        self.check(capsys, f"{foreign}: got an ONNX file without fairquant metadata; allowed: one ", foreign, path)
        cut = tmp_path / "cut.onnx"
        cut.write_bytes(foreign.read_bytes()[:-20])
        self.check(capsys, f"{cut}: not a whole ONNX file (it ends within the field at ", cut, path)

    def test_a_graph_that_does_not_run(self, model, images, tmp_path, capsys):
        broken = tmp_path / "broken.onnx"
        broken.write_bytes(model.read_bytes().replace(b"ReduceMean", b"ReduceNope"))
        self.check(capsys, f"{broken}: got a file that onnxruntime cannot run (", broken, *images("1.png"))

    def test_out(self, model, images, tmp_path, capsys):
        [path] = images("1.png")
        self.check(capsys, f"--out: got {tmp_path / 'no' / 'p.csv'}, but ", model, path, "--out", tmp_path / "no/p.csv")
        self.check(capsys, f"--out: got {path}, which is read here", model, path, "--out", path)
        self.check(capsys, f"--out: got {model}, which is read here", model, path, "--out", model)
        self.check(capsys, f"--out: got {tmp_path}, which is no file", model, path, "--out", tmp_path)

    def test_nothing_is_written_where_the_model_fails(self, images, tmp_path, capsys):
        model = write_model(tmp_path / "m.onnx", size=5)
        arguments = (model, *images("1.png"), "--out", tmp_path / "p.csv")
        self.check(capsys, "images: got float32 (1, 3, 8, 8); allowed: float32 (N, 3, 5, 5)", *arguments)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "m.onnx"]

    @pytest.mark.parametrize("option", ["--top", "--threads", "--batch-size"])
    @pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", "²"])
    def test_numbers(self, model, capsys, option, value):
        with pytest.raises(SystemExit) as error:
            main([str(model), "a.jpg", f"{option}={value}"])
        assert error.value.code == 2
        allowed = f"argument {option}: got {value!r}; allowed: a whole number, at least 1"
        assert capsys.readouterr().err.splitlines()[-1] == f"python -m fairquant.predict: error: {allowed}"

    @pytest.mark.parametrize(("option", "most"), [("--top", 10**6), ("--threads", 1024), ("--batch-size", 10**6)])
    def test_numbers_that_no_machine_holds(self, model, capsys, option, most):
        for value in (str(most + 1), "9" * 24):
            with pytest.raises(SystemExit) as error:
                main([str(model), "a.jpg", f"{option}={value}"])
            assert error.value.code == 2
            assert capsys.readouterr().err.endswith(f"argument {option}: got {value!r}; allowed: at most {most}\n")

    def test_paths_that_the_system_refuses(self, model, images, tmp_path, capsys, monkeypatch):
        [path] = images("1.png")
        long = tmp_path / ("x" * 300)
        self.check(capsys, f"{long}: File name too long", model, long)
        self.check(capsys, f"{long}: File name too long", model, path, "--out", long)

        def refuse(self, **_):
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "is_dir", refuse)  # as for a file in a folder that may not be entered
        self.check(capsys, f"{path}: Permission denied", model, path)


class TestInstalled:
    """What a machine needs that only predicts."""

    def test_an_onnx_file_needs_what_the_page_says(self, model, images, tmp_path):
        paths = images("1.png", "b ü.png")
        done, code, loaded = run_apart(model, *paths, "--out", tmp_path / "p.csv")
        assert code == 0, done.stderr
        assert loaded == {"fairquant", *({"pillow": "PIL"}.get(name, name) for name in NEEDED)}
        assert len(rows((tmp_path / "p.csv").read_text(encoding="utf-8"))) == 2
        page = (ROOT / "docs" / "predict.md").read_text(encoding="utf-8")
        assert f"pip install {' '.join(NEEDED)}\n" in page

    def test_openvino_takes_the_place_of_onnxruntime(self, model, images):
        done, code, loaded = run_apart(model, *images("1.png"), "--runtime", "openvino", also=("openvino", "packaging"))
        assert code == 0, done.stderr
        assert loaded - {"packaging"} == {"fairquant", "numpy", "PIL", "safetensors", "tqdm", "openvino"}

    def test_a_runtime_that_is_absent(self, model, images):
        done, code, _ = run_apart(model, *images("1.png"), also=())
        assert code == 2
        assert "got 'onnxruntime', which is not installed; allowed: a runtime that is there" in done.stderr

    def test_a_packed_file_where_torch_is_absent(self, images, tmp_path):
        packed = tmp_path / "packed.safetensors"
        done, code, _ = run_apart(packed, *images("1.png"))
        assert code == 2
        reason = "got a packed file, which needs torch, and torch is not installed; allowed here: a model.onnx"
        assert done.stderr.splitlines()[0] == f"error: {packed}: {reason}"


class TestStreams:
    @pytest.mark.parametrize(("rows_seen", "bar"), [(False, True), (True, False)])
    def test_progress_is_shown_unless_the_rows_are(self, model, images, capsys, monkeypatch, rows_seen, bar):
        [path] = images("1.png")
        monkeypatch.setattr("fairquant.predict.__main__.SOON", 0.0)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: rows_seen)
        _, out, err = run(capsys, model, path, "--threads", 1)
        assert len(out.splitlines()) == 2
        assert ("predict: 100%" in err) is bar

    def test_an_interrupted_run_leaves_nothing(self, model, images, tmp_path, capsys, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("fairquant.predict.predictor.normalise", interrupt)
        assert run(capsys, model, *images("1.png"), "--out", tmp_path / "p.csv") == (130, "", "")
        assert not list(tmp_path.glob("*p.csv*"))

    def test_a_reader_that_stops_early_is_no_error(self, model, images):
        images(*(f"{number}.png" for number in range(300)))
        predict = f"{sys.executable} -m fairquant.predict {model} {model.parent / 'images'} --out - --threads 1"
        command = ["bash", "-c", f"{predict} | head -1; exit ${{PIPESTATUS[0]}}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ('image,class,probability,red,"green, or so",blå\n', "")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
    @pytest.mark.parametrize("out", [[], ["--out", "-"]])
    def test_an_output_that_is_full(self, model, images, out):
        command = [sys.executable, "-m", "fairquant.predict", str(model), *map(str, images("1.png")), *out]
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, done.stderr) == (2, "error: standard output: No space left on device\n")

    def test_an_output_that_knows_ascii_only(self, model, images):
        command = [sys.executable, "-m", "fairquant.predict", str(model), *map(str, images("ü.png")), "--threads", "1"]
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
        assert done.stdout.splitlines()[1].startswith(f"{model.parent}/images/\\xfc.png ".encode())
        assert done.stderr == b""
