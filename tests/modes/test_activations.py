"""Activations in every mode: calibrated after the weights are rounded, trained on, saved, found again after a kill."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

from fairquant import plugins
from fairquant.allocate.bitmap import BitMap
from fairquant.config.load import parse_config
from fairquant.errors import UserError
from fairquant.models.spec import ModelSpec
from fairquant.modes._activations import ActivationPlan
from fairquant.modes._ranking import UnitRanking
from fairquant.quantize.activate import activation_quantizers, activation_settings, attach_activations
from fairquant.quantize.attach import bitmap_of
from fairquant.quantize.state import load_quantized, save_quantized
from fairquant.train import loop
from stages import baseline, evaluate, quantize

CPU = torch.device("cpu")
POINTS = ["0.input", "4.input"]
WITHOUT = ("none", "ptq_static", "ptq_dynamic")
TRAINED = ("baq_learnable", "fair_static_qat", "iterative_qat", "kmeans")
OPTIONAL = tuple(name for name in plugins.names("mode") if name not in WITHOUT)
CALIBRATION = {"batches": 3, "batch_size": 10}


def run(mode: str, job: object) -> object:
    return plugins.load("mode", mode).quantize(job)


def logits(model: nn.Module, size: int = 8) -> torch.Tensor:
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output: torch.Tensor = model(images.to(memory_format=torch.channels_last))
    return output


def grids(model: nn.Module) -> dict[str, tuple[float, int]]:
    return {n: (q.scale.item(), q.zero_point.item()) for n, q in activation_quantizers(model).items()}


def options(**changes: object) -> dict[str, object]:
    return {"activations": {"bits": 4, **changes}, "calibration": CALIBRATION}


class TestEveryMode:
    @pytest.mark.parametrize("mode", [*OPTIONAL, "none"])
    def test_activations_are_left_alone_unless_asked_for(self, mode, make_job):
        for bits in (None, 32):
            model = run(mode, make_job(epochs=2, activations={"bits": bits})).model
            assert not activation_quantizers(model) and activation_settings(model) is None
            assert type(model) is nn.Sequential

    @pytest.mark.parametrize("mode", OPTIONAL)
    def test_asked_for_they_are_quantized_and_the_result_is_deterministic(self, mode, make_job):
        results = [run(mode, make_job(epochs=2, **options())) for _ in range(2)]
        first, second = (result.model for result in results)
        assert {name: q.bits for name, q in activation_quantizers(first).items()} == dict.fromkeys(POINTS, 4)
        assert list(bitmap_of(first).layers) == ["0", "4"] and not first.training
        assert grids(first) == grids(second) and torch.equal(logits(first), logits(second))
        assert results[0].history == results[1].history
        plain = run(mode, make_job(epochs=2)).model
        assert not torch.equal(logits(first), logits(plain))

    @pytest.mark.parametrize("place", ["all", "layers"])
    @pytest.mark.parametrize("mode", [*OPTIONAL, "ptq_static", "ptq_dynamic"])
    def test_saved_and_loaded_bit_for_bit(self, mode, place, make_job, tmp_path, monkeypatch):
        job = make_job(epochs=2, **options(points=place))
        plain = copy.deepcopy(job.model)
        model = run(mode, job).model
        monkeypatch.setattr("fairquant.quantize.state.skeleton", lambda spec, folded: plain.train())
        save_quantized(tmp_path / "model.safetensors", model, SPEC)
        loaded, _, bits = load_quantized(tmp_path / "model.safetensors")
        assert torch.equal(logits(loaded.to(memory_format=torch.channels_last)), logits(model))
        assert activation_settings(loaded) == activation_settings(model)
        assert list(bits.layers) == list(bitmap_of(model).layers) == ["0", "4"]
        save_quantized(tmp_path / "again.safetensors", loaded, SPEC)
        if not {"iterative_qat", "baq_learnable"} & {mode}:
            assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


SPEC = ModelSpec("resnet18", ("a", "b"), 8, (0.5,) * 3, (0.25,) * 3)


class TestPostTraining:
    @pytest.mark.parametrize("mode", ["ptq_static", "ptq_dynamic"])
    def test_eight_bits_unless_asked_for(self, mode, make_job):
        for bits, used in ((None, 8), (3, 3)):
            result = run(mode, make_job(activations={"bits": bits}, calibration=CALIBRATION))
            assert {q.bits for q in activation_quantizers(result.model).values()} == {used}
            assert {q.dynamic for q in activation_quantizers(result.model).values()} == {mode == "ptq_dynamic"}
            assert bitmap_of(result.model).layers["0"].tolist() == [2, 4, 8, 2, 4, 8] and not result.history.rows

    def test_static_ranges_are_those_of_the_rounded_model(self, make_job):
        """By hand: min and max of what flows through a model whose weights are rounded, over all batches."""
        job = make_job(**options(observer="minmax", bits=8))
        rounded = run("fair_static", make_job()).model
        model = run("ptq_static", job).model
        rows = np.random.default_rng(0).permutation(job.store.indices("train"))[:30]
        pixels = torch.from_numpy(job.store.images[rows]).permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(job.store.meta[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        images = (pixels - mean) / std
        with torch.no_grad():
            inputs = {"0.input": images, "4.input": rounded[:4](images)}
        for name, value in inputs.items():
            low, high = min(value.min().item(), 0.0), max(value.max().item(), 0.0)
            scale, zero_point = grids(model)[name]
            assert scale == pytest.approx((high - low) / 255, rel=1e-5)
            assert zero_point == pytest.approx(-low / scale, abs=0.51)

    def test_dynamic_ranges_come_with_the_input(self, make_job):
        model = run("ptq_dynamic", make_job(activations={"bits": 8})).model
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            alone, together = model(images[:1]), model(torch.cat([images[:1], 100 * images[1:]]))[:1]
        assert not torch.equal(alone, together)

    @pytest.mark.parametrize("observer", plugins.names("observer"))
    @pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
    def test_every_observer_at_sixteen_bits_is_close_to_full_precision(self, observer, scheme, make_job):
        full = logits(copy.deepcopy(make_job().model).eval())
        eight = BitMap.filled({"0": (), "4": ()}, 32)
        section = options(bits=16, observer=observer, scheme=scheme)
        model = run("ptq_static", make_job(bits=eight, **section)).model
        assert (logits(model) - full).abs().max() < 0.35 * full.std()

    def test_the_worst_group_is_that_of_the_full_precision_model(self, make_job, monkeypatch):
        asked = {**CALIBRATION, "sampling": "worst_group"}
        job = make_job(activations={"bits": 8}, calibration=asked)
        seen = {}
        monkeypatch.setattr("fairquant.train.calibrate.calibrate", lambda *_, **how: seen.update(how))
        run("ptq_static", job)
        rows = job.store.indices("val")
        pixels = torch.from_numpy(job.store.images[rows]).permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(job.store.meta[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        with torch.no_grad():
            right = make_job().model.eval()((pixels - mean) / std).argmax(1).numpy() == job.store.labels[rows]
        expected = [right[job.store.groups[rows] == group].mean() for group in range(2)]
        assert seen["groups_accuracy"] == pytest.approx(expected)

    def test_accuracy_is_measured_only_where_it_is_asked_for(self, make_job):
        calibration = {**CALIBRATION, "sampling": "worst_group"}
        assert ActivationPlan.of(make_job(calibration=calibration)).accuracy is None
        dynamic = make_job(activations={"bits": 8}, calibration=calibration)
        assert ActivationPlan.of(dynamic, dynamic=True).accuracy is None
        assert len(ActivationPlan.of(dynamic).accuracy) == 2


class TestTraining:
    @pytest.mark.parametrize(("observer", "moves"), [("moving_average", True), ("minmax", True), ("percentile", False)])
    def test_ranges_that_follow_training(self, observer, moves, make_job):
        section = options(observer=observer, bits=8)
        start = grids(run("fair_static", make_job(**section)).model)
        end = grids(run("fair_static_qat", make_job(epochs=3, lr=0.1, **section)).model)
        assert start.keys() == end.keys() and (start["4.input"] != end["4.input"]) == moves

    def test_the_loss_sees_the_grid(self, make_job):
        fine, coarse = (
            run("fair_static_qat", make_job(epochs=1, **options(bits=bits))).history.rows[0].train_loss
            for bits in (16, 2)
        )
        assert fine != coarse

    @pytest.mark.parametrize(
        ("mode", "observer"), [*((mode, "moving_average") for mode in TRAINED), ("iterative_qat", "histogram")]
    )
    def test_a_killed_run_resumes_bit_for_bit(self, mode, observer, make_job, tmp_path, monkeypatch):
        how = {"epochs": 4, "iterative": {"rounds": 2}, **options(observer=observer)}
        expected = run(mode, make_job(**how))
        for epoch in (2, 4) if mode == "iterative_qat" else (3,):
            with monkeypatch.context() as patch:
                killed_at(epoch, patch)
                with pytest.raises(Killed):
                    run(mode, make_job(**how, checkpoint_dir=tmp_path / f"resume{epoch}"))
            resumed = run(mode, make_job(**how, checkpoint_dir=tmp_path / f"resume{epoch}"))
            assert resumed.history == expected.history
            files = [tmp_path / f"{name}{epoch}.safetensors" for name in ("expected", "resumed")]
            for path, result in zip(files, (expected, resumed), strict=True):
                save_quantized(path, result.model, SPEC)
            assert files[0].read_bytes() == files[1].read_bytes()

    @pytest.mark.parametrize("metric", plugins.names("importance"))
    def test_importance_is_measured_through_quantized_activations(self, metric, make_job):
        job = make_job(epochs=2, iterative={"rounds": 2}, **options())
        config = parse_config({"importance_metric": metric, "importance": {"batch_size": 16}})
        ranking = UnitRanking(config, job.store, CPU)
        model = run("iterative_qat", dataclasses.replace(job, ranking=ranking)).model
        assert set(bitmap_of(model).widths()) == {2, 4, 8} and torch.isfinite(logits(model)).all()


class Killed(Exception):
    """Stands in for a kill."""


def killed_at(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the training loop stop before its so-manieth epoch, counted over all runs."""
    numbers, original = itertools.count(1), loop._Run.train_epoch

    def train(self: loop._Run, bar: object) -> object:
        if next(numbers) == epoch:
            raise Killed
        return original(self, bar)

    monkeypatch.setattr(loop._Run, "train_epoch", train)


class Residual(nn.Module):
    """A stem, a residual block and a head, with batch norm everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6)
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem_norm(self.stem(x)).relu()
        x = self.norm(self.conv(x)) + x
        output: torch.Tensor = self.head(self.pool(x).flatten(1))
        return output


@pytest.mark.parametrize(("mode", "batch_norm"), [("ptq_static", "fold"), ("fair_static_qat", "fold"),
                                                  ("fair_static_qat", "fold_train")])  # fmt: skip
def test_with_folded_batch_norm(mode, batch_norm, make_job, tmp_path, monkeypatch):
    torch.manual_seed(0)
    plain = Residual()
    bits = BitMap("per_channel", {"stem": np.full(6, 8, np.uint8), "conv": np.full(6, 8, np.uint8),
                                  "head": np.full(2, 8, np.uint8)})  # fmt: skip
    job = make_job(model=copy.deepcopy(plain), bits=bits, batch_norm=batch_norm, epochs=1, **options(bits=8))
    model = run(mode, job).model
    names = ["stem.input", "conv.input", "add.0", "pool.input", "head.input"]
    assert list(activation_quantizers(model)) == names

    def skeleton(spec: ModelSpec, *, folded: bool) -> nn.Module:
        from fairquant.models.fold import fold_pairs, foldable

        fold_pairs(plain, foldable(plain))
        return plain.train()

    monkeypatch.setattr("fairquant.quantize.state.skeleton", skeleton)
    save_quantized(tmp_path / "model.safetensors", model, SPEC)
    loaded, _, _ = load_quantized(tmp_path / "model.safetensors")
    assert torch.equal(logits(loaded.to(memory_format=torch.channels_last)), logits(model))
    assert list(activation_quantizers(loaded)) == names


def test_ranges_under_folding_in_training_are_those_of_the_folded_model(make_job):
    torch.manual_seed(0)
    plain = Residual()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(9.0)
    bits = BitMap.filled(dict.fromkeys(("stem", "conv", "head"), ()), 8)
    found = []
    for batch_norm in ("fold", "fold_train"):
        job = make_job(model=copy.deepcopy(plain), bits=bits, batch_norm=batch_norm, **options(bits=8))
        from fairquant.modes import _attach

        found.append(grids((_attach.attach if batch_norm == "fold" else _attach.attach_folding)(job, bits).model))
    for name, (scale, zero_point) in found[0].items():
        assert found[1][name] == (pytest.approx(scale, rel=1e-4), pytest.approx(zero_point, abs=1))


def test_the_stages_count_bit_operations_with_the_widths_of_activations(project):
    metrics, files = {}, {}
    baseline.main(parse_config({"device": "cpu", "evaluate": {"bootstrap": {"resamples": 0}}}))
    for bits in (None, 4):
        section = {"activations": {"bits": bits}, "calibration": CALIBRATION}
        config = parse_config({"quant_mode": "fair_static", "quantize": section, "device": "cpu",
                               "evaluate": {"bootstrap": {"resamples": 0}}})  # fmt: skip
        quantize.main(config)
        evaluate.main(config)
        metrics[bits] = [
            json.loads((project / f"metrics/{name}.json").read_text()) for name in ("quantize", "evaluate")
        ]
        files[bits] = (project / "models/quantized.safetensors").read_bytes()
    (plain, before), (quantized, after) = metrics[None], metrics[4]
    assert set(after["cost"]) - set(before["cost"]) == {"activation_bits"}
    assert set(quantized["bits"]) - set(plain["bits"]) == {"activations"}
    assert after["cost"]["activation_bits"] == quantized["bits"]["activations"] == 4
    assert after["cost"]["gbops"] == pytest.approx(before["cost"]["gbops"] / 8, rel=1e-4)  # six digits are written
    assert files[None] != files[4]


def test_a_model_with_activations_is_refused_a_second_time(make_job):
    model = run("ptq_static", make_job(**options())).model
    with pytest.raises(UserError, match="^model: got one whose activations are quantized already; allowed: "):
        attach_activations(model, bits=8, scheme="symmetric", observer="minmax")
