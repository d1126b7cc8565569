"""Weights in ONNX graphs: both runtimes make of them what ``CodedLayer`` says, at load, from few bytes."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from fairquant.allocate.bitmap import BitMap
from fairquant.errors import UserError
from fairquant.export.codes import CodedLayer, coded_layers
from fairquant.export.graph.lut import float_weight, integer_weight, is_integer
from fairquant.export.graph.subgraph import Subgraph, merged, stored_bytes
from fairquant.quantize.attach import quantize_model
from tests.export.random_layers import Arrays, coded, model_of, run_onnxruntime, run_openvino

CONV, LINEAR, DEPTHWISE = (12, 5, 3, 3), (12, 7), (12, 1, 3, 3)
MIX = [2, 4, 8, 4, 4, 2, 0, 8, 4, 1, 3, 0]
EVERY = [2, 32, 8, 0, 1, 5, 32, 2, 0, 1, 4, 8]
RANDOM = np.random.default_rng(0)

INTEGERS = {
    **{f"{bits} bits": coded(bits, CONV, seed=bits) for bits in range(9)},
    "mixed": coded(MIX, CONV),
    "mixed linear": coded(MIX, LINEAR),
    "sorted": coded([2] * 5 + [4] * 7, CONV),
    "pruned and 1 bit": coded([0, 1] * 6, CONV),
    "every channel pruned": coded(np.zeros(12), LINEAR),
    "depthwise": coded(MIX, DEPTHWISE),
    "one step size": coded(4, CONV, shared_scale=True),
    "one channel": coded([3], (1, 3, 3, 3)),
    "one weight": coded([2], (1, 1)),
    "one weight of 1 bit": coded(1, (1, 1)),
    "odd number of codes": coded([4, 2, 4], (3, 5)),
}

FLOATS = {
    **INTEGERS,
    **{f"{bits} bits": coded(bits, CONV, seed=bits) for bits in (*range(9, 17), 32)},
    "wide": coded([2, 16, 9, 32, 0, 1] * 2, CONV),
    "every kind": coded(EVERY, CONV),
    "every kind linear": coded(EVERY, LINEAR),
    "pruned and floats": coded([0, 32] * 6, LINEAR),
    **{
        f"asymmetric {name}": coded(bits, CONV, scheme="asymmetric", shared_scale=shared)
        for name, bits, shared in [
            ("8", 8, False), ("3", 3, True), ("every kind", EVERY, False), ("shared", EVERY, True),
            ("wide", [16, 12] * 6, False), ("1", 1, False),
        ]
    },
    **{
        f"codebook per {per} {name}": coded(bits, CONV, codebook=per)
        for per in ("tensor", "channel")
        for name, bits in [("3", 3), ("1", 1), ("8", 8), ("every kind", EVERY), ("mixed", MIX)]
    },
    "per weight, all alike": coded(np.full(CONV, 4), CONV),
}  # fmt: skip
TURNED = [name for name, layer in FLOATS.items() if len(layer.shape) == 2]

WIDTHS = {"0": np.uint8([2, 4, 8, 0, 1, 4, 3, 2]), "2": np.uint8([8, 4, 4])}
OF_EACH = np.arange(8 * 27, dtype=np.uint8).reshape(8, 3, 3, 3) % 5
BITMAPS = {
    "mixed": BitMap("per_channel", WIDTHS),
    "codebook": BitMap("per_channel", WIDTHS, codebook="tensor"),
    "asymmetric": BitMap("per_tensor", {name: np.array(3, np.uint8) for name in WIDTHS}, scheme="asymmetric"),
    "per weight": BitMap("per_param", {"0": OF_EACH, "2": np.full((3, 72), 6, np.uint8)}),
}


class Case:
    """What one weight must be and what each runtime made of it."""

    def __init__(self, expected: Any, onnxruntime: Any, openvino: Any) -> None:
        self.expected, self.onnxruntime, self.openvino = expected, onnxruntime, openvino

    def check(self) -> None:
        for result in (self.onnxruntime, self.openvino):
            assert result.dtype == self.expected.dtype
            np.testing.assert_array_equal(result, self.expected)


def run_all(weights: dict[str, tuple[Subgraph, Any]]) -> dict[str, Case]:
    """Return both runtimes' results of all subgraphs, run as one model with their tables merged."""
    nodes = [helper.make_node("Identity", [part.output], [name]) for name, (part, _) in weights.items()]
    outputs = {
        name: (helper.np_dtype_to_tensor_dtype(expected.dtype), expected.shape)
        for name, (_, expected) in weights.items()
    }
    model = model_of([part for part, _ in weights.values()], nodes, outputs)
    first, (second, _) = run_onnxruntime(model), run_openvino(model)
    return {name: Case(expected, first[name], second[name]) for name, (_, expected) in weights.items()}


@pytest.fixture(scope="module")
def integers() -> dict[str, Case]:
    weights = {name: (integer_weight(part, prefix=f"{name}/w"), int8(part)) for name, part in INTEGERS.items()}
    for name in [name for name in TURNED if name in INTEGERS]:
        part = integer_weight(INTEGERS[name], prefix=f"{name}/turned", transpose=True)
        weights[f"{name} turned"] = part, int8(INTEGERS[name]).T
    return run_all(weights)


@pytest.fixture(scope="module")
def floats() -> dict[str, Case]:
    weights = {}
    for name, layer in FLOATS.items():
        factor = np.random.default_rng(1).uniform(0.5, 2, layer.shape[0]).astype(np.float32)
        scaled = layer.weight() * factor.reshape(-1, *(1,) * (len(layer.shape) - 1))
        weights[name] = float_weight(layer, prefix=f"{name}/w"), layer.weight()
        weights[f"{name} scaled"] = float_weight(layer, prefix=f"{name}/scaled", factor=factor), scaled
        if name in TURNED:
            part = float_weight(layer, prefix=f"{name}/turned", factor=factor, transpose=True)
            weights[f"{name} turned"] = part, scaled.T
    return run_all(weights)


def int8(layer: CodedLayer) -> Any:
    levels = layer.levels()
    assert np.abs(levels).max() <= 127
    return levels.astype(np.int8)


class TestValues:
    @pytest.mark.parametrize("name", INTEGERS)
    def test_levels(self, integers: dict[str, Case], name: str):
        assert is_integer(INTEGERS[name])
        integers[name].check()

    @pytest.mark.parametrize("name", [name for name in TURNED if name in INTEGERS])
    def test_levels_transposed(self, integers: dict[str, Case], name: str):
        integers[f"{name} turned"].check()

    @pytest.mark.parametrize("name", FLOATS)
    def test_weights(self, floats: dict[str, Case], name: str):
        floats[name].check()

    @pytest.mark.parametrize("name", FLOATS)
    def test_weights_times_a_factor(self, floats: dict[str, Case], name: str):
        floats[f"{name} scaled"].check()

    @pytest.mark.parametrize("name", TURNED)
    def test_weights_transposed(self, floats: dict[str, Case], name: str):
        floats[f"{name} turned"].check()

    @pytest.mark.parametrize("name", BITMAPS)
    def test_what_a_quantized_model_computes_with(self, name: str):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(72, 3)).eval()
        quantize_model(model, BITMAPS[name])
        weights = {
            name: (float_weight(layer, prefix=name), model.get_submodule(name).weight.detach().numpy())
            for name, layer in coded_layers(model).items()
        }
        for case in run_all({f"w{name}": weight for name, weight in weights.items()}).values():
            case.check()


class TestWhatIsInteger:
    def test_grids_of_up_to_8_bits_with_a_width_per_channel(self):
        assert is_integer(coded(8, CONV)) and is_integer(coded(MIX, CONV))

    @pytest.mark.parametrize(
        "layer",
        [
            coded(9, CONV),
            coded(EVERY, CONV),
            coded(4, CONV, scheme="asymmetric"),
            coded(4, CONV, codebook="tensor"),
            coded(np.full(CONV, 4), CONV),
        ],
        ids=["9 bits", "floats", "asymmetric", "codebook", "per weight"],
    )
    def test_nothing_else(self, layer: CodedLayer):
        assert not is_integer(layer)
        with pytest.raises(UserError, match="^layer conv: got a weight that is not int8 per channel; allowed: float_w"):
            integer_weight(layer, prefix="w")

    def test_only_matrices_are_transposed(self):
        for make in (integer_weight, float_weight):
            with pytest.raises(ValueError, match=r"^transpose: got a weight of shape \(12, 5, 3, 3\); allowed: \(o"):
                make(coded(4, CONV), prefix="w", transpose=True)


WIDE_MIX = RANDOM.permutation(np.repeat([0, 1, 2, 3, 4, 8], 8))


def quantized_node(operator: str, part: Subgraph, outputs: int, group: int = 1) -> bytes:
    """Return QDQ → node with a weight → QDQ, as a quantized network has it."""
    image = operator == "Conv"
    constants = {
        "xs": np.float32(0.02), "xz": np.uint8(128), "ys": np.float32(0.05), "yz": np.uint8(120),
        "ws": np.linspace(0.001, 0.01, outputs, dtype=np.float32), "wz": np.zeros(outputs, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", [part.output, "ws", "wz"], ["wd"], axis=0 if image else 1),
        helper.make_node(operator, ["xd", "wd"], ["y0"], **({"group": group} if image else {})),
        helper.make_node("QuantizeLinear", ["y0", "ys", "yz"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
    ]
    return model_of(
        [part],
        nodes,
        {"y": (TensorProto.FLOAT, ("n", outputs, 6, 6) if image else ("n", 10, outputs))},
        inputs={"x": ("n", 48 if group > 1 else 16, 8, 8) if image else ("n", 10, 16)},
        constants=[numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


KINDS = {
    "Conv": ((48, 16, 3, 3), 1, "QLinearConv", "Convolution"),
    "depthwise": ((48, 1, 3, 3), 48, "QLinearConv", "Convolution"),
    "MatMul": ((48, 16), 1, "QLinearMatMul", "FullyConnected"),
}
AROUND = {"Input", "Output", "Const", "Reorder", "Subgraph", "FakeQuantize", "Eltwise"}
"""What OpenVINO puts around a node, whatever its weight."""


class TestFolding:
    """Nothing of the weights' graph is left in what a runtime runs."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("bits", [8, 4, 3, WIDE_MIX], ids=["8", "4", "3", "mix"])
    def test_integers_are_multiplied_as_integers(self, kind: str, bits: Any, tmp_path: Path):
        shape, group, fused, compiled = KINDS[kind]
        turned = kind == "MatMul"
        part = integer_weight(coded(bits, shape), prefix="w", transpose=turned)
        plain = coded(bits, shape).levels().astype(np.int8)
        plain = Subgraph((), (numpy_helper.from_array(np.ascontiguousarray(plain.T if turned else plain), "w"),), "w")
        operator, size = ("MatMul", (2, 10, 16)) if turned else ("Conv", (2, 48 if group > 1 else 16, 8, 8))
        feeds: Arrays = {"x": np.random.default_rng(2).standard_normal(size).astype(np.float32)}
        packed, raw = (quantized_node(operator, weight, 48, group) for weight in (part, plain))

        optimized = tmp_path / "optimized.onnx"
        expected = run_onnxruntime(raw, feeds)["y"]
        np.testing.assert_array_equal(run_onnxruntime(packed, feeds, optimized=optimized)["y"], expected)
        assert operators(optimized) == {"QuantizeLinear", fused, "DequantizeLinear"}

        outputs, ran = run_openvino(packed, feeds)
        reference, ran_raw = run_openvino(raw, feeds)
        np.testing.assert_array_equal(outputs["y"], reference["y"])
        assert sorted(ran) == sorted(ran_raw)
        if platform.machine() in ("x86_64", "AMD64"):
            assert (compiled, "u8") in ran

    @pytest.mark.parametrize("operator", ["Conv", "MatMul"])
    @pytest.mark.parametrize(
        "make",
        [
            lambda shape: coded(8, shape),
            lambda shape: coded(4, shape),
            lambda shape: coded(WIDE_MIX, shape),
            lambda shape: coded(8, shape, scheme="asymmetric"),
            lambda shape: coded(WIDE_MIX, shape, scheme="asymmetric"),
            lambda shape: coded(np.where(WIDE_MIX == 4, 32, 12), shape),
            lambda shape: coded(WIDE_MIX, shape, codebook="channel"),
        ],
        ids=["8", "4", "mix", "asymmetric 8", "asymmetric mix", "wide", "codebook"],
    )
    def test_floats_are_constants(self, make: Callable[..., CodedLayer], operator: str, tmp_path: Path):
        turned = operator == "MatMul"
        layer = make((48, 16) if turned else (48, 16, 3, 3))
        part = float_weight(layer, prefix="w", transpose=turned)
        size, result = ((2, 10, 16), (2, 10, 48)) if turned else ((2, 16, 8, 8), (2, 48, 6, 6))
        node = helper.make_node(operator, ["x", part.output], ["y"])
        model = model_of([part], [node], {"y": (TensorProto.FLOAT, result)}, inputs={"x": size})
        x = np.random.default_rng(2).standard_normal(size).astype(np.float32)

        optimized = tmp_path / "optimized.onnx"
        weight = torch.from_numpy(layer.weight()).double()
        image = torch.from_numpy(x).double()
        expected = (image @ weight.T if turned else nn.functional.conv2d(image, weight)).numpy()
        tolerance = {"rtol": 0, "atol": 1e-5 * np.abs(expected).max()}
        np.testing.assert_allclose(run_onnxruntime(model, {"x": x}, optimized=optimized)["y"], expected, **tolerance)
        assert operators(optimized) == {operator}

        outputs, ran = run_openvino(model, {"x": x})
        np.testing.assert_allclose(outputs["y"], expected, **tolerance)
        kinds = {kind for kind, _ in ran}
        assert kinds - AROUND <= {"Convolution", "FullyConnected", "Transpose"}  # it turns matrices itself, once
        assert not {"i8", "u8"} & {kind for _, kind in ran}


def resnet18() -> list[tuple[int, ...]]:
    blocks = [(64, 64, 3, 3)] * 4
    for width in (128, 256, 512):
        blocks += [(width, width // 2, 3, 3), (width, width // 2, 1, 1), *[(width, width, 3, 3)] * 3]
    return [(64, 3, 7, 7), *blocks, (1000, 512)]


def mixed(shape: tuple[int, ...], seed: int) -> CodedLayer:
    """Return 2, 4 and 8 bits for 25, 50 and 25 % of the channels."""
    quarter = shape[0] // 4
    bits = np.repeat([2, 4, 8], [quarter, shape[0] - 2 * quarter, quarter])
    return coded(np.random.default_rng(seed).permutation(bits), shape, seed=seed)


class TestSize:
    def test_resnet18_at_2_4_and_8_bits(self):
        layers = [mixed(shape, seed) for seed, shape in enumerate(resnet18())]
        assert sum(math.prod(layer.shape) for layer in layers) == 11_678_912
        bits = sum(int(layer.bits.sum()) * math.prod(layer.shape[1:]) for layer in layers)
        integers = [integer_weight(layer, prefix=f"layers.{at}.conv") for at, layer in enumerate(layers)]
        assert stored_bytes(*integers) < 1.011 * bits / 8
        together = stored_bytes(Subgraph(*merged(integers), ""))
        assert bits / 8 < together < 1.006 * bits / 8

    def test_floats_take_step_sizes_more(self):
        layer = mixed((256, 256, 3, 3), 0)
        sizes = [stored_bytes(make(layer, prefix="w")) for make in (integer_weight, float_weight)]
        assert 4 * 256 < sizes[1] - sizes[0] < 4 * 256 + 150

    @pytest.mark.parametrize("bits", [*range(1, 17), 32])
    def test_a_layer_of_one_width(self, bits: int):
        layer = coded(bits, (64, 64, 3, 3))
        tables = 4 * 256 * (8 + 4 + 2)
        assert stored_bytes(float_weight(layer, prefix="w")) <= 64 * 64 * 9 * bits / 8 + 4 * 64 + tables + 1500

    def test_pruned_channels_take_no_room(self):
        half, full = coded([0, 8] * 32, (64, 64, 3, 3)), coded(8, (64, 64, 3, 3))
        saved = stored_bytes(integer_weight(full, prefix="w")) - stored_bytes(integer_weight(half, prefix="w"))
        assert saved > 32 * 64 * 9 - 800
        assert stored_bytes(integer_weight(coded(0, (64, 64, 3, 3)), prefix="w")) < 200

    def test_few_weights_are_not_worth_a_permutation(self):
        layer = coded([2, 4, 8, 4], (4, 1, 3, 3))
        part = integer_weight(layer, prefix="w")
        assert not part.nodes and stored_bytes(part) < 4 * 9 + 30

    def test_the_permutation_takes_one_or_two_bytes_for_a_channel(self):
        part = integer_weight(mixed((512, 128, 3, 3), 0), prefix="w")
        place = next(tensor for tensor in part.initializers if tensor.name.endswith("place"))
        assert numpy_helper.to_array(place).nbytes == 2 * 512


class TestGraph:
    @pytest.mark.parametrize("name", ["every kind", "codebook per channel mixed", "asymmetric wide"])
    def test_the_same_bytes_every_time(self, name: str):
        first, second = (float_weight(FLOATS[name], prefix="conv1/w") for _ in range(2))
        for one, other in zip((*first.nodes, *first.initializers), (*second.nodes, *second.initializers), strict=True):
            assert one.SerializeToString(deterministic=True) == other.SerializeToString()

    @pytest.mark.parametrize("name", FLOATS)
    def test_names_and_raw_data(self, name: str):
        part = float_weight(FLOATS[name], prefix="conv1/w", factor=np.ones(FLOATS[name].shape[0], np.float32))
        outputs = [output for node in part.nodes for output in node.output]
        names = [*outputs, *(tensor.name for tensor in part.initializers)]
        assert all(name.startswith("conv1/w/") for name in names) and len(set(names)) == len(names)
        assert all(tensor.HasField("raw_data") for tensor in part.initializers)
        assert part.output in names
