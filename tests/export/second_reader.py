"""A second reader of packed files, from docs/packed.md alone: by way of the safetensors library, and slowly."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from safetensors import safe_open


def width_map(stream: np.ndarray, count: int) -> list[int]:
    """Read unit by unit: each node hands out its bits to the units that come by, in their order."""
    table: list[tuple[int, int]] = []
    while sum(Fraction(1, 2**length) for _, length in table) < 1:
        table.append((int(stream[2 * len(table)]), int(stream[2 * len(table) + 1])))
    words, code, before = {}, 0, 0
    for width, length in table:
        code <<= length - before
        words[format(code, f"0{length}b") if length else ""] = width
        code, before = code + 1, length
    bits = "".join(format(byte, "08b")[::-1] for byte in stream[2 * len(table) :].tolist())
    nodes = sorted({word[:depth] for word in words for depth in range(len(word))})  # "0" before "00": preorder
    queue: dict[str, Iterator[str]] = {}
    waiting, place = {"": count}, 0
    for node in nodes:
        held = bits[place : place + waiting[node]]
        queue[node], place = iter(held), place + waiting[node]
        waiting[node + "0"], waiting[node + "1"] = held.count("0"), held.count("1")
    assert set(bits[place:]) <= {"0"} and len(bits) - place < 8
    units = []
    for _ in range(count):
        word = ""
        while word not in words:
            word += next(queue[word])
        units.append(words[word])
    return units


def numbers(stream: np.ndarray, width: int) -> np.ndarray:
    """Return all numbers a stream has room for, up to 7 more than there are."""
    if width > 8:
        count = len(stream) * 8 // width
        while count + -(-count * (width - 8) // 8) > len(stream):
            count -= 1
        return stream[:count] + 256 * numbers(stream[count:], width - 8)[:count]
    bits = np.unpackbits(stream, bitorder="little").astype(np.int64)
    bits = bits[: len(bits) // width * width].reshape(-1, width)
    return bits @ (1 << np.arange(width))


class _Front:
    """Hands out numbers from the front."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.place = values, 0

    def take(self, count: int) -> np.ndarray:
        self.place += count
        return self.values[self.place - count : self.place]


def weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return the weights of layers of these shapes, channel by channel, weight by weight."""
    with safe_open(str(path), framework="np") as file:
        layout = json.loads(file.metadata()["packed"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    units = {"per_tensor": lambda s: 1, "per_channel": lambda s: s[0], "per_param": math.prod}[layout["granularity"]]
    widths = _Front(np.array(width_map(arrays["widths"], sum(units(shape) for shape in shapes.values()))))
    by_layer = {n: np.repeat(widths.take(units(s)), math.prod(s) // units(s)) for n, s in shapes.items()}
    streams = {b: numbers(arrays[f"codes.{b}"], b) for b in range(1, 17) if f"codes.{b}" in arrays}
    counts = {b: sum(int((w == b).sum()) for w in by_layer.values()) for b in streams}
    codes = {b: _Front(stream[: counts[b]]) for b, stream in streams.items()}
    zeros = {b: _Front(stream[counts[b] :]) for b, stream in streams.items()}
    flats = {name: _Front(arrays.get(name, np.empty(0, np.float32))) for name in ("floats", "steps", "centroids")}
    return {
        name: _layer(by_layer[name].reshape(shape[0], -1), layout, codes, zeros, flats).reshape(shape)
        for name, shape in shapes.items()
    }


def _layer(widths: np.ndarray, layout: dict, codes: dict, zeros: dict, flats: dict[str, _Front]) -> np.ndarray:
    stored = np.zeros(widths.shape, np.int64)
    for width, front in codes.items():
        stored[widths == width] = front.take(int((widths == width).sum()))
    result = np.zeros(widths.shape, np.float32)
    result[widths == 32] = flats["floats"].take(int((widths == 32).sum()))
    shared = layout["granularity"] == "per_tensor" or layout["codebook"] == "tensor"
    channels = [np.arange(len(widths))] if shared else [np.array([channel]) for channel in range(len(widths))]
    for rows in channels:
        for width in np.unique(widths[rows]).tolist():
            chosen = np.zeros(widths.shape, bool)
            chosen[rows] = widths[rows] == width
            if width not in (0, 32) and layout["codebook"]:
                book = flats["centroids"].take(min(2**width, int(chosen.sum())))
                result[chosen] = book[stored[chosen]]
            elif width not in (0, 32):
                step, levels = flats["steps"].take(1), stored[chosen] - (2 ** (width - 1) - 1)
                if width == 1:
                    levels = 2 * stored[chosen] - 1
                elif layout["scheme"] == "asymmetric":
                    levels = stored[chosen] - zeros[width].take(1)
                result[chosen] = step * levels.astype(np.float32)
    return result
