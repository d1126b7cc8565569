"""The comparison with torchvision's int8 path: the same weights, the same images, and one line where it cannot run."""

from __future__ import annotations

import copy
import csv
import io
import sys

import numpy as np
import pytest
import torch

from fairquant.config.load import load_config, parse_config
from fairquant.data.store import Store
from fairquant.errors import UserError
from fairquant.models.build import build
from fairquant.models.io import load_model, save_model
from fairquant.models.spec import ModelSpec
from fairquant.train.calibrate import calibration_rows
from scripts import compare_int8
from scripts.compare_int8 import calibration_images, choose_engine, int8_backend, latencies, to_int8

ENGINE = next((name for name in compare_int8.ENGINES if name in torch.backends.quantized.supported_engines), None)
needs_engine = pytest.mark.skipif(ENGINE is None, reason="this torch has no int8 backend")
PARAMS = "device: cpu\nquantize: {calibration: {batches: 2, batch_size: 16}}\n"


@pytest.fixture(autouse=True)
def undetermined():
    """Whatever ran before: torchvision's int8 operations have no deterministic form, and a warning would say so."""
    before = torch.are_deterministic_algorithms_enabled()
    quietly = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(before, warn_only=quietly)


@pytest.fixture
def workspace(make_store, tmp_path, monkeypatch):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    store = make_store(tmp_path / "data/prepared", n_per_group=30, size=32)
    spec = ModelSpec("resnet18", store.classes, 32, (0.5,) * 3, (0.25,) * 3)
    save_model(tmp_path / "models/pretrained.safetensors", build(spec, seed=0).eval(), spec)
    (tmp_path / "params.yaml").write_text(PARAMS)
    return tmp_path


class TestEngine:
    def test_the_first_of_ours_that_there_is(self):
        assert choose_engine(None, ["qnnpack", "onednn", "x86", "fbgemm"]) == "x86"
        assert choose_engine("qnnpack", ["qnnpack", "x86"]) == "qnnpack"

    def test_none_is_one_line(self):
        with pytest.raises(UserError, match=r"^torch: got no int8 backend \(none\); allowed: one with x86 \| fbgemm"):
            choose_engine(None, ["none"])

    def test_another_is_one_line(self):
        with pytest.raises(UserError, match=r"^--engine: got 'x86'; allowed: qnnpack$"):
            choose_engine("x86", ["qnnpack"])

    def test_a_torch_without_it_is_one_line(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch.ao", None)
        with (
            pytest.raises(UserError, match="^torch: got .* without torch.ao.quantization; allowed:"),
            int8_backend("x86"),
        ):
            pass

    @needs_engine
    def test_the_engine_is_put_back(self):
        before = torch.backends.quantized.engine
        with pytest.raises(ValueError, match="broken"), int8_backend(ENGINE):
            assert torch.backends.quantized.engine == ENGINE
            raise ValueError("broken")
        assert torch.backends.quantized.engine == before


@needs_engine
def test_int8_is_the_models_own_weights_rounded(workspace):
    """Each int8 weight is the folded one within half a step; the logits follow those of full precision."""
    model, _ = load_model(workspace / "models/pretrained.safetensors")
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with int8_backend(ENGINE) as quantization:
        found = to_int8(model, "resnet18", iter([images]), engine=ENGINE, quantization=quantization)
        weight = found.get_submodule("conv1").weight()
        scale = weight.q_per_channel_scales() if ENGINE != "qnnpack" else torch.full((64,), weight.q_scale())
        norm = model.get_submodule("bn1")
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        folded = model.get_submodule("conv1").weight * factor[:, None, None, None]
        distance = (weight.dequantize() - folded).abs().amax(dim=(1, 2, 3))
        assert bool((distance <= 0.5001 * scale).all())
        with torch.no_grad():
            mine, theirs = model(images), found(images)
    assert float((mine - theirs).abs().max()) < 0.1 * float(mine.abs().max())


def test_calibration_images_are_those_of_the_pipeline(workspace):
    store, config = Store.open(workspace / "data/prepared"), load_config(workspace / "params.yaml", meta=None)
    shown = torch.cat(list(calibration_images(config, store)))
    rows = calibration_rows(store, config.quantize.calibration, seed=config.seed)
    assert len(shown) == len(rows) == 32
    std, mean = np.array(store.meta["std"]), np.array(store.meta["mean"])
    back = (shown.permute(0, 2, 3, 1).numpy() * std + mean) * 255
    np.testing.assert_allclose(back, store.images[np.asarray(rows)], atol=1e-3)
    worst = parse_config({"quantize": {"calibration": {"sampling": "worst_group"}}})
    with pytest.raises(
        UserError, match=r"^quantize.calibration.sampling: got 'worst_group'; allowed: random \| balanced"
    ):
        next(calibration_images(worst, store))


def test_latencies_are_medians_in_turns(monkeypatch):
    order, clock = [], iter(np.cumsum([9, 9, 0, 1, 0, 5, 0, 3, 0, 5, 0, 2, 0, 50]).tolist())
    monkeypatch.setattr(compare_int8.time, "perf_counter", lambda: next(clock))
    models = [lambda _, name=name: order.append(name) for name in "ab"]
    assert latencies(models, torch.zeros(1), 3) == [2, 5]  # a: 1, 3, 2; b: 5, 5, 50
    assert order == list("abababab")  # the first round is not timed


@needs_engine
def test_the_table(workspace, capsys):
    path = workspace / "out/int8.csv"
    before = torch.backends.quantized.engine
    code = compare_int8.main(["--workspace", str(workspace), "--batch", "2", "--repeats", "1", "--csv", str(path)])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert path.read_text() == printed.out and torch.backends.quantized.engine == before
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert [row["model"] for row in rows] == ["full precision", f"torchvision int8, {ENGINE}", "ours, w8a8 ptq_static"]
    sizes = [float(row["size_mb"]) for row in rows]
    assert 3.5 < sizes[0] / sizes[1] < 4.1 and 3.5 < sizes[0] / sizes[2] < 4.1
    assert float(rows[0]["speed_up"]) == 1 and rows[1]["latency_ms"] and not rows[2]["latency_ms"]
    for row in rows:
        groups = {name.removeprefix("accuracy:"): float(row[name]) for name in row if name.startswith("accuracy:")}
        assert float(row["worst"]) == min(groups.values()) == groups[row["worst_group"]]
        assert float(row["gap"]) == pytest.approx(max(groups.values()) - min(groups.values()), abs=2e-6)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            "model",
            "error: model.name: got 'test_efficientnet'; allowed: resnet18 | resnet50 (torchvision's quantizable ones)",
        ),
        ("nothing", "error: {}/models/pretrained.json: not found; run the stage that writes it (dvc repro)"),
        ("engine", "error: torch: got no int8 backend (none); allowed: one with x86 | fbgemm | qnnpack"),
        ("batch", "error: --batch: got 0; allowed: 1 or more"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(workspace, change, line, capsys, monkeypatch):
    arguments = ["--workspace", str(workspace)]
    if change == "model":
        spec = ModelSpec("test_efficientnet", ("a", "b"), 32, (0.5,) * 3, (0.25,) * 3)
        save_model(workspace / "models/pretrained.safetensors", build(spec, seed=0), spec)
    elif change == "nothing":
        (workspace / "models/pretrained.json").unlink()
    elif change == "engine":
        real = copy.copy(choose_engine)
        monkeypatch.setattr(compare_int8, "choose_engine", lambda name, _: real(name, ["none"]))
    else:
        arguments += ["--batch", "0"]
    assert compare_int8.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err == line.format(workspace) + "\n" and not captured.out
