"""The integer simulation equals onnxruntime bit for bit: single fused nodes, then networks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from fairquant.errors import UserError
from fairquant.export.integer import IntegerSession
from tests.export.qdq import Builder, images, optimized_operators, runtime, session

TYPES = pytest.mark.parametrize("dtype", [np.uint8, np.int8])


def least(dtype) -> int:
    return int(np.iinfo(dtype).min)


@pytest.fixture(scope="module", autouse=True)
def exact_cpu() -> None:
    """Skip where the CPU does not sum 8-bit products exactly: 255 · 127 + 255 · 127 leaves 16 bits."""
    builder = Builder()
    x = builder.on_grid("image", 1.0, 0)
    codes = builder.constant(np.full((8, 64, 1, 1), 127, np.int8))
    weight = builder.dequantize(codes, np.ones(8), np.zeros(8, np.int8), axis=0)
    y = builder.on_grid(builder.node("Conv", x, weight, kernel_shape=[1, 1]), 127 * 64, 0)
    result = runtime(builder.model(y, image=("batch", 64, 4, 4)), np.full((1, 64, 4, 4), 255, np.float32))
    if result[0, 0, 0, 0] != 255 * 127 * 64:
        pytest.skip("this CPU saturates sums of 8-bit products (no VNNI), so onnxruntime is not exact on it")


def same(model: onnx.ModelProto, x: np.ndarray) -> None:
    expected = runtime(model, x)
    assert len(np.unique(expected)) > 8, "the test says nothing"
    assert np.array_equal(IntegerSession(model).run(x), expected)


def grid(builder: Builder, dtype) -> tuple[float, int]:
    return float(builder.random.uniform(0.01, 0.1)), int(builder.random.integers(least(dtype), least(dtype) + 256))


def convolution(seed, dtype, *, group=1, extreme=False, relu=False, bias=True, kernel=3, **window):
    builder = Builder(seed)
    scale, zero = grid(builder, dtype)
    weight, scales = builder.weight((24 if group == 1 else 16, 16 // group, kernel, kernel), extreme=extreme)
    inputs = [builder.on_grid("image", scale, zero, dtype), weight]
    inputs += [builder.bias(scales, scale)] if bias else []
    window = {"pads": [1, 1, 1, 1], **window} if kernel == 3 else window
    y = builder.node("Conv", *inputs, kernel_shape=[kernel, kernel], group=group, **window)
    out = least(dtype) if relu else int(builder.random.integers(least(dtype), least(dtype) + 256))
    y = builder.on_grid(builder.node("Relu", y) if relu else y, float(builder.random.uniform(0.05, 0.3)), out, dtype)
    return builder.model(y, image=("batch", 16, 9, 9)), images(builder.random, 8, 16, 9, 9, scale=2.0)


@TYPES
@pytest.mark.parametrize(
    "options",
    [
        {}, {"bias": False}, {"relu": True}, {"extreme": True}, {"kernel": 1}, {"group": 16}, {"group": 4},
        {"group": 16, "extreme": True}, {"strides": [2, 2]}, {"dilations": [2, 2], "pads": [2, 2, 2, 2]},
        {"pads": [0, 1, 2, 1]},
    ],
)  # fmt: skip
def test_convolutions(dtype, options, tmp_path):
    for seed in range(3):
        model, x = convolution(seed, dtype, **options)
        same(model, x)
    assert "QLinearConv" in optimized_operators(model, tmp_path)
    assert [step.kind for step in IntegerSession(model).steps] == ["QuantizeLinear", "QConv", "DequantizeLinear"]


@TYPES
@pytest.mark.parametrize("equal", [True, False])
def test_sums(dtype, equal, tmp_path):
    """Where all scales are equal the sum often lies between two codes."""
    for seed in range(12):
        builder = Builder(seed)
        grids = [grid(builder, dtype) for _ in range(3)]
        a, b, result = grids[:1] * 3 if equal else grids
        left = builder.on_grid("image", *a, dtype)
        right = builder.on_grid(builder.node("Mul", "image", builder.constant(np.float32(-0.37))), *b, dtype)
        model = builder.model(builder.on_grid(builder.node("Add", left, right), *result, dtype))
        same(model, images(builder.random, 64, 3, 8, 8, scale=3.0))
    assert "QLinearAdd" in optimized_operators(model, tmp_path)


POOLS = {
    "GlobalAveragePool": {},
    "ReduceMean": {},
    "AveragePool": {"kernel_shape": [2, 2], "strides": [2, 2]},
    "MaxPool": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
}


@TYPES
@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("size", [2, 4, 7])
@pytest.mark.parametrize("op", POOLS)
def test_pools(dtype, equal, size, op):
    builder = Builder(size)
    given, result = grid(builder, dtype), grid(builder, dtype)
    x = builder.on_grid("image", *given, dtype)
    axes = [builder.constant(np.array([2, 3]))] if op == "ReduceMean" else []
    y = builder.node(op, x, *axes, **POOLS[op])
    model = builder.model(builder.on_grid(y, *(given if equal else result), dtype), image=("batch", 32, size, size))
    same(model, images(builder.random, 64, 32, size, size, scale=3.0))


@pytest.mark.parametrize("op", ["AveragePool", "MaxPool"])
@pytest.mark.parametrize("size", [7, 8])
def test_pools_that_round_up(op, size):
    builder = Builder(size)
    given, result = grid(builder, np.uint8), grid(builder, np.uint8)
    x = builder.on_grid("image", *given)
    y = builder.node(op, x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    model = builder.model(builder.on_grid(y, *result), image=("batch", 3, size, size))
    same(model, images(builder.random, 64, 3, size, size, scale=3.0))


@pytest.mark.parametrize("count_padding", [0, 1])
def test_average_pool_with_padding(count_padding):
    builder = Builder(5)
    x = builder.on_grid("image", *grid(builder, np.uint8))
    y = builder.node("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=count_padding)
    same(builder.model(builder.on_grid(y, *grid(builder, np.uint8))), images(builder.random, 64, 3, 8, 8, scale=3.0))


@TYPES
@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize(("op", "turned"), [("Gemm", 0), ("Gemm", 1), ("MatMul", 0)])
def test_products(dtype, quantized, op, turned, tmp_path):
    builder = Builder(7)
    scale, zero = grid(builder, dtype)
    shape = [-1, 64] if op == "Gemm" else [-1, 4, 64]
    x = builder.on_grid(builder.node("Reshape", "image", builder.constant(np.array(shape))), scale, zero, dtype)
    weight, scales = builder.weight((10, 64) if turned else (64, 10), axis=0 if turned else 1)
    attributes = {"transB": turned} if op == "Gemm" else {}
    y = builder.node(op, x, weight, *([builder.bias(scales, scale)] if op == "Gemm" else []), **attributes)
    model = builder.model(builder.on_grid(y, 0.3, 3, dtype) if quantized else y, image=("batch", 64, 4, 1))
    same(model, images(builder.random, 64, 64, 4, 1, scale=2.0))
    runs = optimized_operators(model, tmp_path)
    assert not {"Gemm", "MatMul"} & set(runs)
    assert f"Q{op}" in [step.kind for step in IntegerSession(model).steps]


def network(seed, dtype=np.uint8, *, bits=8, pool="ReduceMean", view="Reshape") -> onnx.ModelProto:
    """Convolutions, depthwise ones, residual sums with and without a convolution beside, poolings and a classifier."""
    builder = Builder(seed)

    def on_grid(y: str, relu: bool) -> tuple[str, float]:
        scale = float(builder.random.uniform(0.02, 0.03)) * 2 ** (8 - bits)
        zero = least(dtype) + (0 if relu else 2 ** (bits - 1))
        codes = builder.quantize(builder.node("Relu", y) if relu else y, scale, zero, dtype)
        if bits < 8:
            ends = (builder.constant(dtype(end)) for end in (least(dtype), least(dtype) + 2**bits - 1))
            codes = builder.node("Clip", codes, *ends)
        return builder.dequantize(codes, scale, dtype(zero)), scale

    def conv(given: tuple[str, float], shape: tuple[int, ...], *, relu: bool, stride: int = 1) -> tuple[str, float]:
        weight, scales = builder.weight(shape, gain=1.5)
        group, pad = (shape[0] if shape[1] == 1 else 1), shape[2] // 2
        y = builder.node(
            "Conv", given[0], weight, builder.bias(scales, given[1], largest=300), kernel_shape=shape[2:],
            pads=[pad] * 4, strides=[stride] * 2, group=group,
        )  # fmt: skip
        return on_grid(y, relu)

    x = conv(on_grid("image", False), (16, 3, 3, 3), relu=True, stride=2)
    x = builder.node("MaxPool", x[0], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), x[1]
    for beside in (False, True):
        inner = conv(conv(x, (16, 16, 3, 3), relu=True), (16, 1, 3, 3), relu=True)
        inner = conv(inner, (16, 16, 1, 1), relu=False)
        outer = conv(x, (16, 16, 1, 1), relu=False) if beside else x
        x = on_grid(builder.node("Add", inner[0], outer[0]), True)
    axes = [builder.constant(np.array([2, 3]))] if pool == "ReduceMean" else []
    shape = [builder.constant(np.array([-1, 16]))] if view == "Reshape" else []
    x = on_grid(builder.node(view, builder.node(pool, x[0], *axes), *shape), False)
    weight, scales = builder.weight((7, 16), gain=1.5)
    logits = builder.node("Gemm", x[0], weight, builder.bias(scales, x[1], largest=300), transB=1)
    return builder.model(logits, image=("batch", 3, 32, 32))


@pytest.mark.parametrize("pool", ["ReduceMean", "GlobalAveragePool"])
@pytest.mark.parametrize("bits", [8, 4])
def test_networks(bits, pool, tmp_path):
    x = images(np.random.default_rng(0), 32, 3, 32, 32, scale=3.0)
    for seed in range(3):
        model = network(seed, bits=bits, pool=pool)
        same(model, x)
    runs = Counter(optimized_operators(model, tmp_path))
    kinds = Counter(step.kind for step in IntegerSession(model).steps)
    assert (runs["QLinearConv"], runs["QLinearAdd"], runs["QGemm"]) == (8, 2, 1)
    assert (kinds["QConv"], kinds["QAdd"], kinds["QGemm"]) == (8, 2, 1)
    assert kinds["QGlobalAveragePool"] == runs["QLinearGlobalAveragePool"] == (pool == "GlobalAveragePool")


def test_every_tensor_of_a_network_is_equal():
    """Not only the logits: all codes between, which onnxruntime shows when they are made outputs."""
    model = network(1)
    names = [name for step in IntegerSession(model).steps if step.kind in ("QConv", "QAdd") for name in step.outputs]
    x = images(np.random.default_rng(1), 8, 3, 32, 32, scale=3.0)
    ours = IntegerSession(model).tensors(x, names)
    assert len(names) == 10
    for name, codes in zip(names, ours, strict=True):
        shown = onnx.ModelProto()
        shown.CopyFrom(model)
        del shown.graph.output[:]
        shown.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None))
        assert np.array_equal(session(shown).run(None, {"image": x})[0], codes), name


def test_networks_of_signed_codes_agree():
    """onnxruntime on x86 leaves int8 tensors that are read twice floating: equal but for what that rounds."""
    x = images(np.random.default_rng(0), 32, 3, 32, 32, scale=3.0)
    model = network(2, np.int8)
    assert np.mean(runtime(model, x) == IntegerSession(model).run(x)) > 0.9


@pytest.mark.parametrize(
    ("operator", "attributes", "kinds"),
    [
        ("Clip", (0, 6), ["QuantizeLinear", "DequantizeLinear", "Conv"]),
        ("Sigmoid", (), ["QuantizeLinear", "DequantizeLinear", "Conv"]),
    ],
)
def test_what_no_code_range_clips_stays_floating(operator, attributes, kinds, tmp_path):
    builder = Builder(4)
    x = builder.on_grid("image", 0.02, 128)
    weight, scales = builder.weight((8, 3, 3, 3))
    y = builder.node("Conv", x, weight, builder.bias(scales, 0.02), kernel_shape=[3, 3])
    y = builder.node(operator, y, *(builder.constant(np.float32(end)) for end in attributes))
    model = builder.model(builder.on_grid(y, 0.1, 0))
    steps = [step.kind for step in IntegerSession(model).steps]
    assert "QConv" not in steps and set(kinds) <= set(steps)
    assert "QLinearConv" not in optimized_operators(model, tmp_path)
    x = images(builder.random, 16, 3, 8, 8)
    assert np.mean(runtime(model, x) == IntegerSession(model).run(x)) > 0.999


@pytest.mark.parametrize("clip", [(), ("Relu",), ("Clip", 0, 6)])
@pytest.mark.parametrize("view", ["Reshape", "Flatten", "Squeeze"])
def test_an_average_is_whole_where_the_quantizer_can_move_to_it(view, clip, tmp_path):
    """Over Flatten and what still clips it does not move."""
    builder = Builder(2)
    y = builder.node("GlobalAveragePool", builder.on_grid("image", 0.05, 128))
    shape = {"Reshape": [-1, 3], "Squeeze": [2, 3], "Flatten": None}[view]
    y = builder.node(view, y, *([] if shape is None else [builder.constant(np.array(shape))]))
    if clip:
        y = builder.node(clip[0], y, *(builder.constant(np.float32(end)) for end in clip[1:]))
    model = builder.model(builder.on_grid(y, 6 / 255, 0))
    ours = [step.kind for step in IntegerSession(model).steps]
    assert ("QGlobalAveragePool" in ours) == ("QLinearGlobalAveragePool" in optimized_operators(model, tmp_path))
    x = images(builder.random, 64, 3, 8, 8, scale=20.0)
    same(model, x)


def test_gemm_without_a_stated_zero_point_stays_floating(tmp_path):
    builder = Builder(1)
    x = builder.on_grid(builder.node("Reshape", "image", builder.constant(np.array([-1, 192]))), 0.02, 128)
    weight, scales = builder.weight((192, 5), axis=1)
    del next(node for node in builder.nodes if node.output[0] == weight).input[2]
    model = builder.model(builder.node("Gemm", x, weight, builder.bias(scales, 0.02)))
    assert "QGemm" not in optimized_operators(model, tmp_path)
    assert "QGemm" not in [step.kind for step in IntegerSession(model).steps]


def test_a_file_and_its_content_mean_the_same(tmp_path):
    model = network(0)
    onnx.save(model, tmp_path / "model.onnx")
    x = images(np.random.default_rng(0), 2, 3, 32, 32)
    assert np.array_equal(IntegerSession(tmp_path / "model.onnx").run(x), IntegerSession(model).run(x))


def test_a_file_that_does_not_exist():
    with pytest.raises(UserError, match=r"^nowhere\.onnx: got no such file; allowed: an ONNX file$"):
        IntegerSession("nowhere.onnx")


def test_a_file_that_is_no_onnx_file(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model at all")
    with pytest.raises(UserError, match=r"model\.onnx: got DecodeError; allowed: an ONNX file$"):
        IntegerSession(tmp_path / "model.onnx")


def test_operators_that_are_not_supported_are_named():
    builder = Builder()
    model = builder.model(builder.node("Sin", "image"))
    with pytest.raises(UserError, match=r"^Sin_1: got operator Sin; allowed: Abs, Add, AveragePool, "):
        IntegerSession(model)


def test_products_of_two_quantized_tensors_are_refused():
    builder = Builder()
    a, b = builder.on_grid("image", 0.1, 0), builder.on_grid("image", 0.2, 0)
    model = builder.model(builder.on_grid(builder.node("Mul", a, b), 0.3, 0))
    with pytest.raises(UserError, match="got a Mul of quantized tensors, quantized; allowed: one floating operand"):
        IntegerSession(model)


@pytest.mark.parametrize(
    ("values", "got"),
    [
        (np.zeros((1, 3, 8, 8)), r"float64 of shape \[1, 3, 8, 8\]"),
        (np.zeros((3, 8, 8), np.float32), r"float32 of shape \[3"),
    ],
)
def test_other_images_are_refused(values, got):
    builder = Builder()
    with pytest.raises(UserError, match=rf"^images: got {got}"):
        IntegerSession(builder.model(builder.node("Relu", "image"))).run(values)


def test_tensors_not_computed_are_named():
    builder = Builder()
    with pytest.raises(UserError, match="^tensor: got nothing; allowed: one that is computed$"):
        IntegerSession(builder.model(builder.node("Relu", "image"))).tensors(
            np.zeros((1, 3, 8, 8), np.float32), ["nothing"]
        )
