"""Both runtimes compute what a file says (float64 and whole numbers by hand), and say what is wrong in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from fairquant.errors import ArtifactError, UserError
from fairquant.export import runtimes
from fairquant.export.metadata import ModelMetadata
from fairquant.export.quiet import import_onnxruntime, import_openvino
from fairquant.export.runtimes import Tensor, has_vnni, onnxruntime_options, open_session, openvino_settings
from fairquant.models.spec import ModelSpec
from tests.export import hand_made

ROOT = Path(__file__).resolve().parents[2]
both = pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 3 * 16 * 16)).astype(np.float32)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(5, 3, 16, 16)).astype(np.float32)


@pytest.fixture
def file(tmp_path, weight) -> Path:
    return hand_made.linear(tmp_path / "model.onnx", weight)


@both
@pytest.mark.parametrize("threads", [1, 2])
def test_logits_are_those_of_the_graph(file, weight, images, runtime, threads):
    session = open_session(file, runtime, threads=threads)
    assert (session.path, session.runtime, str(session.images)) == (file, runtime, "float32 (N, 3, 16, 16)")
    for batch in (images, images[:1], images[1:4]):
        logits = session.run(batch)
        expected = batch.reshape(len(batch), -1).astype(np.float64) @ weight.T.astype(np.float64)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@both
def test_the_same_images_give_the_same_bytes_and_results_stay(file, images, runtime):
    session = open_session(file, runtime, threads=1)
    first = session.run(images)
    kept = first.copy()
    session.run(images[::-1])
    again = open_session(str(file), runtime, threads=1).run(images)
    assert np.array_equal(first, kept)
    assert np.array_equal(first, again)


@both
def test_images_may_lie_anyhow_and_are_left_alone(file, images, runtime):
    session = open_session(file, runtime, threads=1)
    lying = np.asfortranarray(images)
    before = lying.copy()
    assert np.array_equal(session.run(lying), session.run(images))
    assert np.array_equal(lying, before)


@both
def test_floating_inputs_of_integer_weights_stay_floating(tmp_path, runtime):
    """Without the settings both round them to 8 bits: 0.1 off here."""
    random = np.random.default_rng(0)
    codes = random.integers(-127, 128, (192, 64)).astype(np.int8)
    scale = random.uniform(0.005, 0.02, 64).astype(np.float32)
    images = random.normal(size=(5, 3, 8, 8)).astype(np.float32)
    expected = images.reshape(5, -1).astype(np.float64) @ (codes * scale.astype(np.float64))
    session = open_session(hand_made.weight_only(tmp_path / "m.onnx", codes, scale, size=8), runtime, threads=1)
    np.testing.assert_allclose(session.run(images), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("flags", ["flags : fma avx2", "flags : avx512f avx512_vnni"])
def test_sums_of_products_do_not_saturate(tmp_path, monkeypatch, flags):
    """48 products 255 · 127 = 1,554,480; two of them are already more than 16 bits hold."""
    monkeypatch.setattr(runtimes, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(flags)
    codes = np.full((2, 3, 4, 4), 127, np.int8)
    codes[1] = -127
    codes[1, 0, 0, :2] = 127
    file = hand_made.integer_convolution(tmp_path / "m.onnx", codes, size=4, step=8192.0)
    if "_vnni" in flags and not real_vnni():
        pytest.skip("this CPU has no VNNI instructions")
    logits = open_session(file, "onnxruntime", threads=1).run(np.full((1, 3, 4, 4), 255, np.float32))
    assert logits.tolist() == [[190 * 8192.0, 0.0]]  # 1,554,480 / 8192 = 189.76; the other sum is negative


def real_vnni() -> bool:
    return Path("/proc/cpuinfo").is_file() and "_vnni" in Path("/proc/cpuinfo").read_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags : sse avx2 avx512_vnni", True),
        ("flags : avx2 avx_vnni", True),
        ("flags : avx512_4vnniw", False),
        ("Features : asimddp", False),
        (None, False),
    ],
)
def test_vnni_is_what_the_system_lists(tmp_path, monkeypatch, text, expected):
    monkeypatch.setattr(runtimes, "CPUINFO", tmp_path / "cpuinfo")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert has_vnni() is expected
    precise = onnxruntime_options(1).get_session_config_entry("session.x64quantprecision")
    assert precise == ("0" if expected else "1")


def test_settings_of_onnxruntime():
    onnxruntime = import_onnxruntime()
    for threads, spinning in ((1, "0"), (3, "1")):
        options = onnxruntime_options(threads)
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
        assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == spinning
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_settings_of_openvino_are_taken():
    openvino = import_openvino()
    ports = openvino.opset13.parameter([1, 2], np.float32)
    model = openvino.Model([openvino.opset13.relu(ports)], [ports])
    compiled = openvino.Core().compile_model(model, "CPU", openvino_settings(2))
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 2
    assert compiled.get_property("NUM_STREAMS") == 1


@both
def test_images_of_another_kind(file, images, runtime):
    session = open_session(file, runtime, threads=1)
    for wrong, shown in (
        (images.astype(np.float64), "float64 (5, 3, 16, 16)"),
        (images[:, :2], "float32 (5, 2, 16, 16)"),
        (images[0], "float32 (3, 16, 16)"),
        (images[..., :8], "float32 (5, 3, 16, 8)"),
    ):
        with pytest.raises(UserError) as caught:
            session.run(wrong)
        assert str(caught.value) == f"images: got {shown}; allowed: float32 (N, 3, 16, 16)"


@both
def test_metadata_is_the_files(tmp_path, weight, file, runtime):
    spec = ModelSpec("resnet18", ("benign", "malignant"), 16, (0.5,) * 3, (0.25,) * 3)
    metadata = ModelMetadata.of(spec, groups=["I", "VI"], provenance=64 * "0")
    named = hand_made.linear(tmp_path / "named.onnx", weight, text=metadata.to_json())
    assert open_session(named, runtime, threads=1).metadata == metadata
    with pytest.raises(ArtifactError, match=r"model\.onnx: "):
        _ = open_session(file, runtime, threads=1).metadata


class TestMistakes:
    def test_unknown_runtime(self, file):
        with pytest.raises(UserError) as caught:
            open_session(file, "tflite", threads=1)
        assert str(caught.value) == "export.runtimes: got 'tflite'; allowed: onnxruntime | openvino"

    def test_no_threads(self, file):
        with pytest.raises(UserError) as caught:
            open_session(file, "onnxruntime", threads=0)
        assert str(caught.value) == "threads: got 0; allowed: at least 1"

    @both
    def test_not_installed(self, file, runtime, monkeypatch):
        monkeypatch.setitem(sys.modules, runtime, None)
        with pytest.raises(UserError) as caught:
            open_session(file, runtime, threads=1)
        assert str(caught.value) == (
            f"export.runtimes: got '{runtime}', which is not installed; allowed: a runtime that is there (pip install "
            f"{runtime})"
        )

    def test_installed_but_broken(self, file, monkeypatch):
        def fail(path: Path, threads: int) -> None:
            raise ImportError("libgomp.so.1: cannot open shared object file", name="openvino._pyopenvino")

        monkeypatch.setattr(runtimes, "RUNTIMES", {"openvino": fail})
        with pytest.raises(UserError) as caught:
            open_session(file, "openvino", threads=1)
        assert str(caught.value) == (
            "export.runtimes: got 'openvino', which is broken (libgomp.so.1: cannot open shared object file); allowed: "
            "a runtime that is there (pip install openvino)"
        )

    @both
    def test_no_file(self, tmp_path, runtime):
        with pytest.raises(ArtifactError) as caught:
            open_session(tmp_path / "absent.onnx", runtime, threads=1)
        assert str(caught.value) == f"{tmp_path}/absent.onnx: not found; run the stage that writes it (dvc repro)"

    @pytest.mark.parametrize(
        ("runtime", "damage", "reason"),
        [
            ("onnxruntime", "cut", "Protobuf parsing failed."),
            ("onnxruntime", "text", "Protobuf parsing failed."),
            ("onnxruntime", "empty", "No graph was found in the protobuf."),
            ("openvino", "cut", "Model can't be parsed"),
            ("openvino", "text", "Model can't be parsed"),
        ],
    )
    def test_damaged_file(self, file, runtime, damage, reason, capfd):
        whole = file.read_bytes()
        file.write_bytes({"cut": whole[:300], "text": b"hello world" * 20, "empty": b""}[damage])
        with pytest.raises(ArtifactError) as caught:
            open_session(file, runtime, threads=1)
        assert str(caught.value) == (
            f"{file}: got a file that {runtime} cannot run ({reason}); allowed: an ONNX file of the export stage"
        )
        assert capfd.readouterr() == ("", "")

    @both
    def test_unknown_operation(self, tmp_path, runtime, capfd):
        node = helper.make_node("Strange", ["image"], ["logits"], domain="elsewhere")
        file = hand_made.write(tmp_path / "m.onnx", [node], {})
        with pytest.raises(ArtifactError, match=rf"m\.onnx: got a file that {runtime} cannot run \(.*Strange.*\); all"):
            open_session(file, runtime, threads=1)
        assert capfd.readouterr() == ("", "")

    @both
    def test_an_error_while_it_runs(self, tmp_path, runtime, capfd):
        """How many images there are is not known before: two images plus two others, but not three."""
        nodes = [
            helper.make_node("Add", ["image", "two"], ["sum"]),
            helper.make_node("Flatten", ["sum"], ["logits"]),
        ]
        two = np.ones((2, 3, 4, 4), np.float32)
        shapes = {"image": ("b", 3, 4, 4), "logits": ("b", 48)}
        file = hand_made.write(tmp_path / "m.onnx", nodes, {"two": two}, **shapes)
        session = open_session(file, runtime, threads=1)
        assert np.array_equal(session.run(two), np.full((2, 48), 2, np.float32))
        with pytest.raises(ArtifactError) as caught:
            session.run(np.ones((3, 3, 4, 4), np.float32))
        told = {
            "onnxruntime": f"{file}: got a file that onnxruntime cannot run (…",
            "openvino": f"{file}: got 2 rows of logits from openvino for 3 images; allowed: one for each",
        }
        assert str(caught.value).startswith(told[runtime])
        assert len(str(caught.value).splitlines()) == 1
        assert capfd.readouterr() == ("", "")

    @both
    @pytest.mark.parametrize(
        ("image", "logits", "dtype", "shown"),
        [
            ((1, 3, 8, 8), (1, 192), TensorProto.FLOAT, "inputs float32 (1, 3, 8, 8) and outputs float32 (1, 192)"),
            (("b", 1, 8, 8), ("b", 64), TensorProto.FLOAT, "inputs float32 (N, 1, 8, 8) and outputs float32 (N, 64)"),
            (("b", 3, 8), ("b", 24), TensorProto.FLOAT, "inputs float32 (N, 3, 8) and outputs float32 (N, 24)"),
            (("b", 3, 8, 8), ("b", 192), TensorProto.UINT8, "inputs uint8 (N, 3, 8, 8) and outputs float32 (N, 192)"),
        ],
    )
    def test_no_image_classifier(self, tmp_path, runtime, image, logits, dtype, shown):
        nodes = [
            helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["real"], ["logits"]),
        ]
        file = hand_made.write(tmp_path / "m.onnx", nodes, {}, image=image, logits=logits, dtype=dtype)
        with pytest.raises(ArtifactError) as caught:
            open_session(file, runtime, threads=1)
        assert str(caught.value) == (
            f"{file}: got {shown}; allowed: images float32 (N, 3, height, width) and logits float32 (N, classes), as "
            "the export stage writes them"
        )

    def test_an_empty_file_has_no_inputs_to_openvino(self, tmp_path):
        (tmp_path / "m.onnx").write_bytes(b"")
        with pytest.raises(ArtifactError, match=r"m\.onnx: got inputs none and outputs none; allowed: images float32"):
            open_session(tmp_path / "m.onnx", "openvino", threads=1)


def test_tensors_are_shown_as_errors_name_them():
    assert str(Tensor("float32", (None, 3, 8))) == "float32 (N, 3, 8)"
    assert str(Tensor("uint8", None)) == "uint8 (?)"


def test_nothing_is_reported_and_no_torch_is_needed(file, tmp_path):
    """In a fresh process with a home of its own: no identifier, no queue of events, no reporter, no torch, no onnx."""
    home = tmp_path / "home"
    home.mkdir()
    program = (
        "import sys; from fairquant.export.runtimes import open_session\n"
        f"for name in ('onnxruntime', 'openvino'): open_session({str(file)!r}, name, threads=1)\n"
        "print(*sorted({'torch', 'onnx', 'openvino_telemetry'} & set(sys.modules)))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment | {"HOME": str(home)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
    assert list(home.rglob("*")) == []
