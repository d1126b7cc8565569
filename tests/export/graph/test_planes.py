"""Codes in bytes: the packed bits themselves, tables, and the sums of planes in both runtimes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto, helper

from fairquant.export.graph.planes import cast, fields, pack, planes_of, smallest, stored, unpacked, zeros
from fairquant.export.graph.subgraph import Builder, stored_bytes
from tests.export.random_layers import model_of, run_onnxruntime, run_openvino


def run(builder: Builder, name: str, shape: tuple[int, ...]) -> list[npt.NDArray[Any]]:
    """Return an int32 tensor of the graph as each runtime computes it."""
    part = builder.finish(name)
    node = helper.make_node("Identity", [name], ["result"])
    model = model_of([part], [node], {"result": (TensorProto.INT32, shape)})
    return [run_onnxruntime(model)["result"], run_openvino(model)[0]["result"]]


def bits_of(packed: npt.NDArray[np.uint8], width: int) -> list[int]:
    """Return the codes in bytes, bit by bit."""
    bits = "".join(f"{byte:08b}"[::-1] for byte in packed.tolist())
    return [int(bits[at : at + width][::-1], 2) for at in range(0, len(bits), width)]


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 7, 8, 64, 101])
def test_packed_bits(width: int, n: int):
    codes = np.random.default_rng(n).integers(0, 1 << width, n)
    packed = pack(codes, width)
    assert packed.dtype == np.uint8 and len(packed) == -(-n * width // 8)
    assert bits_of(packed, width)[:n] == codes.tolist() and not any(bits_of(packed, width)[n:])
    assert fields(width)[packed].reshape(-1)[:n].tolist() == codes.tolist()


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_fields_are_the_codes_in_every_byte(width: int):
    table = fields(width)
    assert table.shape == (256, 8 // width)
    for byte in range(256):
        assert table[byte].tolist() == bits_of(np.array([byte], np.uint8), width)


def test_planes_add_up_to_the_width():
    for width in range(1, 17):
        parts = planes_of(width)
        assert sum(parts) == width and set(parts) <= {1, 2, 4, 8, 16} and list(parts) == sorted(parts, reverse=True)


@pytest.mark.parametrize("width", range(1, 17))
def test_unpacked_in_both_runtimes(width: int):
    shape = (3, 11)
    codes = np.random.default_rng(width).integers(0, 1 << width, shape).astype(np.uint16)
    codes.flat[:2] = 0, (1 << width) - 1
    builder = Builder("w")
    step, offset = (2, -1) if width == 1 else (1, 1 - (1 << (width - 1)))
    stream = unpacked(builder, "b", codes, width, shape=shape, step=step, offset=offset)
    whole = cast(builder, "whole", stream, TensorProto.INT32)
    for result in run(builder, whole.name, shape):
        np.testing.assert_array_equal(result, codes.astype(np.int32) * step + offset)


HIGHEST = {127: "int8", 255: "uint8", 32767: "int16", 65535: "uint16", 65536: "int32"}


@pytest.mark.parametrize("high", HIGHEST)
def test_whole_numbers_take_the_smallest_type(high: int):
    values = np.array([0, high])
    assert smallest(values).dtype == HIGHEST[high]
    builder = Builder("w")
    for result in run(builder, stored(builder, "values", values), (2,)):
        assert result.tolist() == values.tolist()


def test_negative_numbers_are_signed():
    assert [smallest(np.array([-1, high])).dtype for high in (127, 128, 40_000)] == [np.int8, np.int16, np.int32]
    assert smallest(np.empty(0, np.int64)).dtype == np.int8


def test_zeros_take_no_room():
    builder = Builder("w")
    stream = zeros(builder, "none", (512, 512), TensorProto.FLOAT)
    assert stored_bytes(builder.finish(stream.name)) < 120
    builder = Builder("w")
    for result in run(builder, zeros(builder, "none", (2, 3), TensorProto.INT32).name, (2, 3)):
        assert not result.any()
