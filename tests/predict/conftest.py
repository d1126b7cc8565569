"""A tiny ONNX classifier whose answers can be computed by hand, and image files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from fairquant.export.metadata import KEY, ModelMetadata, Quantization
from fairquant.models.spec import ModelSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = ("red", "green, or so", "blå")
WEIGHT = np.array([[2.0, -1.0, 0.5], [0.25, 3.0, -2.0], [-1.0, 0.125, 4.0]], np.float32)


def metadata(
    classes: tuple[str, ...] = CLASSES, *, size: int = 8, quantization: Quantization | None = None
) -> ModelMetadata:
    spec = ModelSpec("resnet18", classes, size, MEAN, STD)
    return ModelMetadata.of(spec, groups=("light", "dark"), provenance="a" * 64, quantization=quantization)


def write_model(
    path: Path, meta: ModelMetadata | None = None, *, weight: np.ndarray = WEIGHT, size: Any = 8, entries: Any = None
) -> Path:
    """Write logits = (mean over the pixels of each channel) @ ``weight`` (3, C)."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, size, size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weight.shape[1]])
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weight"], ["logits"]),
    ]
    constants = [
        helper.make_tensor("weight", TensorProto.FLOAT, weight.shape, weight.reshape(-1).tolist()),
        helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]),
    ]
    graph = helper.make_graph(nodes, "classifier", [images], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, {KEY: (meta or metadata()).to_json()} if entries is None else entries)
    onnx.save(model, path)
    return path


def expected_logits(pixels: np.ndarray, weight: np.ndarray = WEIGHT) -> np.ndarray:
    """Return in float64 what ``write_model``'s model says of uint8 images (N, H, W, 3)."""
    images = (pixels.astype(np.float64) / 255 - MEAN) / STD
    return images.mean(axis=(1, 2)) @ weight.astype(np.float64)


def write_images(folder: Path, *names: str, size: int = 8, seed: int = 0) -> list[Path]:
    """Write a png of random pixels, tinted differently, under each name."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    paths = []
    for name in names:
        tint = random.integers(0, 200, 3)
        pixels = (random.integers(0, 56, (size, size, 3)) + tint).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name, format="png")
        paths.append(folder / name)
    return paths


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.onnx")


@pytest.fixture
def images(tmp_path: Path) -> Callable[..., list[Path]]:
    def make(*names: str, **options: Any) -> list[Path]:
        return write_images(tmp_path / "images", *names, **options)

    return make
