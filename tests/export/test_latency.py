"""Times by a clock that only the models move: medians and percentiles are numpy's, the turns those written down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fairquant.config.export import LatencySection
from fairquant.errors import ArtifactError
from fairquant.export import onnx_file
from fairquant.export.latency import WARM_UP, eager, latency, measure, torch_threads
from fairquant.models.spec import ModelSpec
from tests.export import hand_made

SPEC = ModelSpec("resnet18", ("a", "b"), 8, (0.5,) * 3, (0.25,) * 3)


class Clock:
    """Seconds that pass only when somebody says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def model(self, name: str, seconds: Sequence[float]):
        """Return a model whose calls take ``seconds``, one after the other."""
        waiting: Iterator[float] = iter(seconds)

        def run(images: np.ndarray) -> np.ndarray:
            self.calls.append(name)
            self.now += next(waiting)
            return images[:, 0, 0]

        return run


def test_medians_and_percentiles_are_those_of_the_calls_that_count():
    random, clock, runs = np.random.default_rng(0), Clock(), 20
    seconds = {name: random.uniform(0.001, 1, (2, WARM_UP + runs)) for name in ("fast", "slow")}
    models = {name: clock.model(name, values.ravel()) for name, values in seconds.items()}
    found = measure(models, shape=(3, 4, 4), batches=(1, 16), runs=runs, seed=0, clock=clock)
    assert list(found) == ["1", "16"]
    for place, rows in enumerate(found.values()):
        assert list(rows) == ["fast", "slow"]
        for name, row in rows.items():
            counted = seconds[name][place, WARM_UP:]
            assert row == {
                "median_ms": pytest.approx(1e3 * np.median(counted)),
                "p95_ms": pytest.approx(1e3 * np.percentile(counted, 95)),
            }


def test_models_take_turns_and_another_one_begins_each_round():
    clock = Clock()
    models = {name: clock.model(name, [0.1] * 99) for name in "abc"}
    measure(models, shape=(3, 2, 2), batches=(1,), runs=2, seed=0, clock=clock)
    assert "".join(clock.calls) == ("abcbcacab" + "abc" + "bca")
    assert WARM_UP == 3


def test_all_models_see_the_same_images_of_the_seed():
    given: dict[str, list[np.ndarray]] = {"a": [], "b": []}

    def model(name: str):
        def run(images: np.ndarray) -> np.ndarray:
            given[name].append(images)
            return images

        return run

    measure({name: model(name) for name in given}, shape=(3, 4, 4), batches=(2, 5), runs=1, seed=7)
    assert [images.shape for images in given["a"]] == [(2, 3, 4, 4)] * 4 + [(5, 3, 4, 4)] * 4
    assert {images.dtype for images in given["a"]} == {np.dtype(np.float32)}
    assert all(np.array_equal(a, b) for a, b in zip(given["a"], given["b"], strict=True))
    again: dict[str, list[np.ndarray]] = {"a": given["a"][:1]}
    given = {"a": []}
    measure({"a": model("a")}, shape=(3, 4, 4), batches=(2,), runs=1, seed=7)
    assert np.array_equal(given["a"][0], again["a"][0])


def test_nothing_to_measure():
    assert measure({}, shape=(3, 4, 4), batches=(2,), runs=1, seed=0) == {"2": {}}


def test_progress_is_silent_without_a_terminal(capfd):
    measure({"a": lambda images: images}, shape=(3, 4, 4), batches=(1,), runs=1, seed=0)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 2))


@pytest.mark.parametrize("channels_last", [True, False])
def test_eager_is_the_forward_pass_in_evaluation_mode(network, channels_last):
    images = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = eager(network, channels_last=channels_last)(images)
    assert network.training
    assert network[0].weight.is_contiguous()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="inside"), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError("inside")
    assert torch.get_num_threads() == before


class TestLatency:
    @pytest.fixture(autouse=True)
    def float_file(self, monkeypatch) -> list[tuple[nn.Module, ModelSpec]]:
        """A file by hand in the place of the exporter's, which is tried elsewhere."""
        written: list[tuple[nn.Module, ModelSpec]] = []

        def write(path: Path, model: nn.Module, spec: ModelSpec) -> None:
            written.append((model, spec))
            hand_made.linear(path, np.ones((2, 192), np.float32), size=8)

        monkeypatch.setattr(onnx_file, "write_float_onnx", write)
        return written

    def test_every_model_is_in_the_table(self, network, float_file, tmp_path):
        file = hand_made.linear(tmp_path / "q.onnx", np.ones((2, 192), np.float32), size=8)
        section = LatencySection(runs=2, batches=(1, 3), threads=1)
        before = torch.get_num_threads()
        found = latency(network, SPEC, file, runtimes=("onnxruntime", "openvino"), section=section)
        assert torch.get_num_threads() == before
        assert float_file == [(network, SPEC)]
        assert {key: found[key] for key in ("threads", "runs", "image_size")} == {
            "threads": 1, "runs": 2, "image_size": 8,
        }  # fmt: skip
        assert list(found["batch"]) == ["1", "3"]
        for rows in found["batch"].values():
            assert list(rows) == ["torch_fp32", "onnxruntime_fp32", "openvino_fp32", "onnxruntime", "openvino"]
            assert all(0 < row["median_ms"] <= row["p95_ms"] for row in rows.values())

    def test_without_runtimes_torch_alone(self, network, float_file, tmp_path):
        section = LatencySection(runs=1, batches=(1,))
        found = latency(network, SPEC, tmp_path / "absent.onnx", runtimes=(), section=section)
        assert list(found["batch"]["1"]) == ["torch_fp32"]
        assert float_file == []

    def test_no_file(self, network, tmp_path):
        with pytest.raises(ArtifactError, match=r"absent\.onnx: not found; run the stage that writes it"):
            latency(network, SPEC, tmp_path / "absent.onnx", runtimes=("onnxruntime",), section=LatencySection(runs=1))
