"""CIFAR-10 weights of resnet20 published elsewhere: they import by path, fold, quantize and come back from the file."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from fairquant.allocate.bitmap import BitMap
from fairquant.errors import UserError
from fairquant.models.build import build
from fairquant.models.fold import fold_batch_norm
from fairquant.models.layers import quantizable_layers
from fairquant.models.spec import ModelSpec
from fairquant.quantize.attach import quantize_model
from fairquant.quantize.state import load_quantized, save_quantized

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SPEC = ModelSpec("resnet20", CLASSES, 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def path(shared_data: Path) -> Path:
    file = shared_data / "cifar_resnet20" / "resnet20-12fca82f.th"
    if not file.is_file():
        pytest.skip(f"no published weights at {file}")
    return file


@pytest.fixture
def model(path: Path) -> nn.Module:
    return build(SPEC, weights=str(path), seed=0).eval()


def images(n: int = 64) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def by_the_state(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The network written out, from the file's tensors alone, in float64."""
    weights = {name.removeprefix("module."): value.double() for name, value in state.items()}

    def norm(value: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, gamma, beta = (weights[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        shaped = [tensor.reshape(1, -1, 1, 1) for tensor in (mean, var, gamma, beta)]
        return (value - shaped[0]) / (shaped[1] + 1e-5).sqrt() * shaped[2] + shaped[3]

    x = F.relu(norm(F.conv2d(x, weights["conv1.weight"], padding=1), "bn1"))
    for stage in (1, 2, 3):
        for block in (0, 1, 2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = F.relu(norm(F.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1"))
            y = norm(F.conv2d(y, weights[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            if stride == 2:
                zeros = torch.zeros(len(x), x.shape[1] // 2, *y.shape[2:], dtype=x.dtype)
                x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], dim=1)
            x = F.relu(y + x)
    return F.linear(x.mean((2, 3)), weights["linear.weight"], weights["linear.bias"])


def test_they_import_strictly_and_compute_what_the_file_says(path: Path, model: nn.Module) -> None:
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    assert sum(parameter.numel() for parameter in model.parameters()) == 269_722  # 0.27 M, as published
    with torch.no_grad():
        found = copy.deepcopy(model).double()(images(8).double())
        torch.testing.assert_close(found, by_the_state(state, images(8).double()), rtol=1e-10, atol=1e-10)


def test_they_do_not_fit_another_depth(path: Path) -> None:
    spec = ModelSpec("resnet32", CLASSES, 32, SPEC.mean, SPEC.std)
    with pytest.raises(UserError, match=r"weights do not fit the model \(missing: layer1.3.conv1.weight"):
        build(spec, weights=str(path), seed=0)


def test_they_fold(model: nn.Module) -> None:
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(images().double())
        assert len(fold_batch_norm(model)) == 19
        found = model(images())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("folded", [False, True])
def test_they_quantize(model: nn.Module, folded: bool, tmp_path: Path) -> None:
    """8 bits hardly change a logit, 4 bits more; the file gives the same logits bit for bit."""
    with torch.no_grad():
        expected = model(images())
    if folded:
        fold_batch_norm(model)
    errors = []
    for width in (8, 4):
        rounded = copy.deepcopy(model)
        shapes = {name: layer.weight.shape[0] for name, layer in quantizable_layers(rounded).items()}
        bits = BitMap("per_channel", {name: np.full(n, width, np.uint8) for name, n in shapes.items()})
        quantize_model(rounded, bits)
        save_quantized(tmp_path / "q.safetensors", rounded, SPEC)
        loaded, spec, _ = load_quantized(tmp_path / "q.safetensors")
        with torch.no_grad():
            found = rounded.eval()(images())
            assert spec == SPEC and torch.equal(loaded(images()), found)
        errors.append(float((found - expected).square().mean() / expected.var()))
    assert errors[0] < 0.01 < errors[1] < 1
