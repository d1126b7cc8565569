"""The named architectures through the whole chain: importance, widths, quantization, a saved file, metrics, cost.

Random weights, the smallest images each architecture takes, a handful of samples: what is asked is whether every layer
takes part in every step, not how well the model does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fairquant import plugins
from fairquant.allocate.bitmap import BitMap
from fairquant.assign.run import assign_bits
from fairquant.config.load import parse_config
from fairquant.cost.summary import bit_distribution, summarise_bits
from fairquant.data.batches import iterate
from fairquant.data.store import Store
from fairquant.evaluate.summary import summarise
from fairquant.importance.maps import ImportanceMaps
from fairquant.importance.measure import measure_importance
from fairquant.importance.metrics.hawq import Options
from fairquant.models.build import build
from fairquant.models.describe import describe
from fairquant.models.layers import quantizable_layers
from fairquant.models.spec import ModelSpec
from fairquant.modes import QuantizeJob, with_start
from fairquant.predictions import Predictions
from fairquant.quantize.state import load_quantized, save_quantized
from fairquant.train.predict import predict_splits
from tests.conftest import write_store

SIZES = {
    "tiny_vit_5m_224": 64,
    "deit_tiny_patch16_224": 32,
    "vit_small_patch16_224": 32,
    "mobilenet_v2": 32,
    "efficientnet_b0": 32,
    "squeezenet1_1": 32,
    "resnet34": 32,
    "resnet50": 32,
    "resnet20": 32,
    "nin_gc": 16,
    "face_cnn": 48,
}
"""Image size by model name."""
TRAINED = (
    "tiny_vit_5m_224", "deit_tiny_patch16_224", "mobilenet_v2", "efficientnet_b0", "squeezenet1_1", "resnet20",
    "nin_gc", "face_cnn",
)  # fmt: skip
CURVED = ("tiny_vit_5m_224", "deit_tiny_patch16_224", "efficientnet_b0", "squeezenet1_1", "mobilenet_v3_small")
PARAMS = {
    "granularity": "per_channel",
    "assign": {"bits": [2, 4, 8], "levels": [0.2, 0.4, 0.4]},
    "quantize": {"epochs": 1, "batch_size": 12, "augment": "off"},
}
CPU = torch.device("cpu")


def starting_point(folder: Path, name: str, size: int) -> tuple[Store, ModelSpec, nn.Module]:
    """Twelve training, four validation and four test images of two groups, and a model for them."""
    store = write_store(folder / "prepared", n_per_group=10, size=size)
    spec = ModelSpec(name, store.classes, size, tuple(store.meta["mean"]), tuple(store.meta["std"]))
    return store, spec, awake(build(spec, seed=0), store)


def awake(model: nn.Module, store: Store) -> nn.Module:
    """Bring a new model into a state as after training, in which every layer matters.

    Norms that start at 0 (the last one of timm's residual branches) get a scale, and batch norm the statistics of the
    images, without which signals fade from layer to layer.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.ones_(norm.weight)
        norm.momentum = 1.0
    [batch] = iterate(store, store.indices("train"), batch_size=12, device=CPU)
    with torch.no_grad():
        model.train()(batch.images)
    for norm in norms:
        norm.momentum = 0.1
    return model


def measure(model: nn.Module, store: Store, **settings: Any) -> ImportanceMaps:
    """One batch of two images for each group."""
    return measure_importance(model, store, batch_size=2, samples_per_group=2, device=CPU, seed=0, **settings)


def quantize(mode: str, model: nn.Module, store: Store, bits: BitMap, info: dict[str, Any]) -> Any:
    config = parse_config(PARAMS)
    job = QuantizeJob(
        model=model,
        store=store,
        bits=bits,
        section=config.quantize,
        seed=0,
        device=CPU,
        precision="fp32",
        protect=config.assign.protect,
        roles=info["roles"],
    )
    result = plugins.load("mode", mode).quantize(job)
    return result.model, with_start(job, result)


@dataclass(frozen=True)
class Chain:
    """What each step of one model's run left behind."""

    store: Store
    spec: ModelSpec
    info: dict[str, Any]
    maps: ImportanceMaps
    bits: BitMap
    latent: dict[str, Tensor]
    model: nn.Module
    file: Path


@pytest.fixture(scope="module", params=SIZES)
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """Run one architecture through; the file goes with the module's last use of it."""
    folder = tmp_path_factory.mktemp("chain")
    store, spec, model = starting_point(folder, request.param, SIZES[request.param])
    info = describe(model, spec)
    maps = measure(model, store, metric="grape")
    bits = assign_bits(maps, info, parse_config(PARAMS))
    latent = {name: value.clone() for name, value in model.state_dict().items()}
    quantized, _ = quantize("fair_static", model, store, bits, info)
    save_quantized(folder / "quantized.safetensors", quantized, spec)
    yield Chain(store, spec, info, maps, bits, latent, quantized, folder / "quantized.safetensors")
    (folder / "quantized.safetensors").unlink()


def logits(model: nn.Module, size: int) -> Tensor:
    with torch.no_grad():
        output: Tensor = model.eval()(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)))
    return output


def test_every_layer_matters_to_every_group(chain: Chain) -> None:
    assert list(chain.maps.layers) == list(chain.info["layers"])
    idle = [name for name, array in chain.maps.layers.items() if not array.reshape(2, -1).any(axis=1).all()]
    assert idle == []


def test_the_average_width_is_the_one_asked_for(chain: Chain) -> None:
    shapes = {name: tuple(layer["shape"]) for name, layer in chain.info["layers"].items()}
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    largest = max(int(np.prod(shape[1:])) for shape in shapes.values())
    spent = sum(int(chain.bits.layers[name].sum()) * int(np.prod(shape[1:])) for name, shape in shapes.items())
    assert abs(spent / total - 5.2) <= 6 * largest / total  # within a unit of each kind


def test_the_quantized_model_is_the_plain_one_with_rounded_weights(chain: Chain) -> None:
    """Rounded by hand, Δ = max|w| / M for each out channel; no layer's forward goes around the quantizer."""
    state = dict(chain.latent)
    for name, layer in quantizable_layers(chain.model).items():
        weight = chain.latent[f"{name}.weight"]
        along = (-1, *[1] * (weight.dim() - 1))
        largest = 2.0 ** (torch.from_numpy(chain.bits.layers[name].astype(np.float32)).reshape(along) - 1) - 1
        step = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True) / largest
        state[f"{name}.weight"] = layer.weight.detach()
        torch.testing.assert_close(state[f"{name}.weight"], (weight / step).round() * step, rtol=1e-5, atol=1e-8)
    plain = build(chain.spec, seed=1)
    plain.load_state_dict(state)
    size = chain.spec.image_size
    assert torch.equal(logits(chain.model, size), logits(plain.to(memory_format=torch.channels_last), size))
    plain.load_state_dict(chain.latent)
    assert float((logits(chain.model, size) - logits(plain, size)).abs().max()) > 1e-2


def test_the_file_gives_the_same_logits_bit_for_bit(chain: Chain) -> None:
    loaded, spec, bits = load_quantized(chain.file)
    assert spec == chain.spec
    assert all(np.array_equal(bits.layers[name], widths) for name, widths in chain.bits.layers.items())
    size = spec.image_size
    assert torch.equal(logits(loaded.to(memory_format=torch.channels_last), size), logits(chain.model, size))


def test_predictions_become_metrics(chain: Chain) -> None:
    predictions = predict_splits(chain.model, chain.store, ("val", "test"), batch_size=4, device=CPU, precision="fp32")
    assert isinstance(predictions, Predictions)
    part = predictions["test"]
    assert part.logits.shape == (4, 2) and np.isfinite(part.logits).all()
    summary = summarise(part, classes=chain.store.classes, groups=chain.store.group_names)
    assert summary["overall_acc"] == float((part.logits.argmax(1) == part.labels).mean())
    assert {name: row["n"] for name, row in summary["group"].items()} == {"light": 2, "dark": 2}


def test_cost_counts_every_layer(chain: Chain) -> None:
    """MACs against torch's own counter (tokens of linear layers included), bytes and bit operations by hand."""
    plain = build(chain.spec, seed=0).eval()
    size = chain.spec.image_size
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        plain(torch.zeros(1, 3, size, size))
    products = ("bmm", "scaled_dot_product")  # of attention: no weights
    flops = counter.get_flop_counts()["Global"]
    counted = sum(n for operation, n in flops.items() if not any(word in str(operation) for word in products))
    assert 2 * sum(chain.info["macs"].values()) == counted
    assert min(chain.info["macs"].values()) > 0

    cost = summarise_bits(chain.bits, chain.info)
    weights, bops = 0, 0.0
    layers = quantizable_layers(plain)
    for name, layer in layers.items():
        widths = chain.bits.layers[name].astype(np.int64)
        weights += -(-int(widths.sum()) * (layer.weight.numel() // len(widths)) // 8)
        bops += chain.info["macs"][name] * widths.mean() * 32
    held = {id(layer.weight) for layer in layers.values()}
    rest = sum(value.numel() for value in plain.parameters() if id(value) not in held)
    rest += sum(value.numel() for value in plain.buffers() if value.is_floating_point())
    assert cost["size"]["weights_mb"] == weights / 1e6
    assert cost["size"]["rest_mb"] == 4 * rest / 1e6
    assert cost["gbops"] == pytest.approx(bops / 1e9)
    assert cost["size"]["packed_mb"] < cost["size"]["fp32_mb"] < 8 * cost["size"]["packed_mb"]
    assert [row["layer"] for row in bit_distribution(chain.bits, chain.info)] == list(layers)


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_of_fine_tuning_moves_every_layer(name: str, tmp_path: Path) -> None:
    store, spec, model = starting_point(tmp_path, name, SIZES[name])
    info = describe(model, spec)
    bits = BitMap(
        "per_channel", {key: np.full(layer["shape"][0], 4, np.uint8) for key, layer in info["layers"].items()}
    )
    before = {key: layer.weight.detach().clone() for key, layer in quantizable_layers(model).items()}
    trained, history = quantize("fair_static_qat", model, store, bits, info)
    assert len(history.rows) == 1 and np.isfinite(history.rows[0].train_loss)
    save_quantized(tmp_path / "quantized.safetensors", trained, spec)
    loaded, _, _ = load_quantized(tmp_path / "quantized.safetensors")
    assert torch.equal(
        logits(loaded.to(memory_format=torch.channels_last), spec.image_size), logits(trained, spec.image_size)
    )
    latent = {key: layer.parametrizations.weight.original for key, layer in quantizable_layers(loaded).items()}
    assert [key for key, weight in latent.items() if torch.equal(weight, before[key])] == []


@pytest.mark.parametrize("name", CURVED)
def test_curvature_of_every_layer(name: str, tmp_path: Path) -> None:
    store, _, model = starting_point(tmp_path, name, SIZES.get(name, 32))
    maps = measure(model, store, metric="hawq", options=Options(samples=1))
    assert [layer for layer, array in maps.layers.items() if not array.reshape(2, -1).any(axis=1).all()] == []
    assert all((array >= 0).all() for array in maps.layers.values())
