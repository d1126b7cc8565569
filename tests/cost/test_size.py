"""Sizes of tiny nets by hand, bit by bit."""

import heapq
import math

import numpy as np

from fairquant.allocate.bitmap import BitMap
from fairquant.cost.size import SizeReport, huffman_lengths, size_report

SHAPES = {"conv": (4, 3, 1, 1), "fc": (2, 4)}  # 12 and 8 weights
REST = 4 + 4 * 4 + 2  # conv bias, batch norm of four channels, fc bias


def _u8(value):
    return np.array(value, dtype=np.uint8)


def test_per_channel_by_hand():
    bits = BitMap("per_channel", {"conv": _u8([2, 4, 4, 8]), "fc": _u8([0, 32])})
    size = size_report(bits, SHAPES, rest=REST)
    assert size.weights == math.ceil(3 * (2 + 4 + 4 + 8) / 8) + 4 * 32 // 8  # 7 + 16
    assert size.scales == 4 * 4  # four conv channels; pruned and fp32 channels need none
    # widths 4 (twice), 2, 8, 0, 32: lengths 2, 2, 2, 3, 3 → 2·2 + 2 + 2 + 3 + 3 = 14 bits → 2 bytes, 5 table entries
    assert size.width_map == 2 + 2 * 5
    assert size.rest == 4 * REST
    assert size.packed == 23 + 16 + 12 + 4 * REST
    assert size.reference == math.ceil((3 * 18 + 4 * 32) / 8)
    assert size.fp32 == 4 * (20 + REST)


def test_per_tensor_by_hand():
    bits = BitMap("per_tensor", {"conv": _u8(3), "fc": _u8(8)})
    size = size_report(bits, SHAPES, rest=0)
    assert size == SizeReport(weights=5 + 8, scales=4 * 2, width_map=1 + 4, rest=0, reference=13, fp32=80)
    assert size.ratio == 80 / (13 + 8 + 5)


def test_per_param_by_hand():
    conv = np.full((4, 3, 1, 1), 2, dtype=np.uint8)
    conv[0, 0], conv[3] = 4, 8
    bits = BitMap("per_param", {"conv": conv, "fc": np.zeros((2, 4), dtype=np.uint8)})
    size = size_report(bits, SHAPES, rest=1)
    assert size.weights == (8 * 2 + 4 + 3 * 8) // 8 + 1  # 44 bits
    assert size.scales == 4 * (2 + 1 + 1 + 1)  # channel 0 has two widths
    # 8 weights at 0, 8 at 2, 3 at 8, 1 at 4: lengths 1, 2, 3, 3 (or 2, 1, 3, 3) → 8 + 16 + 9 + 3 = 36 bits
    assert size.width_map == 5 + 2 * 4
    assert size.fp32 == 4 * 21


def test_zero_points_take_a_code_each():
    """Per channel: 2 + 4 + 4 + 8 bits in conv (3 bytes), none at 0, 1 and 32 bits. Per parameter: one per width."""
    layers = {"conv": _u8([2, 4, 4, 8]), "fc": _u8([0, 1])}
    plain, zeros = (
        size_report(BitMap("per_channel", layers, scheme=scheme), SHAPES, rest=REST)
        for scheme in ("symmetric", "asymmetric")
    )
    assert (plain.scales, zeros.scales) == (4 * 5, 4 * 5 + 3)
    assert zeros.packed == plain.packed + 3 and zeros.weights == plain.weights
    conv = np.full((4, 3, 1, 1), 2, dtype=np.uint8)
    conv[0, 0], conv[3] = 4, 8
    each = BitMap("per_param", {"conv": conv, "fc": np.full((2, 4), 16, np.uint8)}, scheme="asymmetric")
    assert size_report(each, SHAPES, rest=0).scales == 4 * (2 + 1 + 1 + 1) + math.ceil((2 + 4 + 2 + 2 + 8) / 8) + 2 * 6
    whole = BitMap("per_tensor", {"conv": _u8(3), "fc": _u8(8)}, scheme="asymmetric")
    assert size_report(whole, SHAPES, rest=0).scales == (4 + 1) + (4 + 1)


def test_full_precision_costs_its_weights_and_rest_only():
    size = size_report(BitMap.filled(SHAPES, 32), SHAPES, rest=REST)
    assert size.weights + size.rest == size.fp32
    assert size.scales == 0
    assert size.width_map == 2


def test_width_map_of_single_weights_costs_what_the_prefix_code_does():
    """0.2/0.4/0.4 of single weights: code lengths 2, 2, 1 → 1.6 bits per weight, above the 1.52 of the entropy."""
    bits = BitMap("per_param", {"fc": np.repeat(_u8([2, 4, 8]), [2000, 4000, 4000]).reshape(100, 100)})
    size = size_report(bits, {"fc": (100, 100)}, rest=0)
    assert size.width_map == 10_000 * 1.6 / 8 + 6
    assert size.width_map * 8 / 10_000 >= 1.5
    assert size.reference == 10_000 * 5.2 / 8


def _optimal_cost(frequencies):
    """The cost of an optimal prefix code is the sum of all merged weights."""
    heap, cost = list(frequencies), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        cost += merged
        heapq.heappush(heap, merged)
    return cost


def test_huffman_lengths_are_an_optimal_prefix_code():
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = rng.integers(1, 1000, size=int(rng.integers(1, 9)))
        frequencies = dict(enumerate(values.tolist()))
        lengths = huffman_lengths(frequencies)
        assert sum(2.0**-length for length in lengths.values()) == 1  # Kraft: a complete prefix code
        cost = sum(frequencies[symbol] * length for symbol, length in lengths.items())
        assert cost == _optimal_cost(frequencies.values())
        share = values / values.sum()
        entropy = -(share * np.log2(share)).sum() * values.sum()
        assert entropy - 1e-6 <= cost <= entropy + values.sum()


def test_huffman_of_one_and_two_symbols():
    assert huffman_lengths({8: 5}) == {8: 0}
    assert huffman_lengths({8: 5, 4: 500}) == {4: 1, 8: 1}
    assert huffman_lengths({}) == {}


def test_to_dict_is_in_megabytes_with_names():
    report = SizeReport(weights=1_000_000, scales=200_000, width_map=0, rest=50_000, reference=1, fp32=5_000_000)
    assert report.to_dict() == {
        "packed_mb": 1.25, "weights_mb": 1.0, "scales_mb": 0.2, "width_map_mb": 0.0, "rest_mb": 0.05,
        "reference_mb": 1e-6, "fp32_mb": 5.0, "ratio": 4.0,
    }  # fmt: skip


def test_an_empty_model_has_no_ratio():
    assert math.isnan(size_report(BitMap("per_tensor", {}), {}, rest=0).ratio)


class TestCodebooks:
    """Four bytes for each value of each codebook, in the place of scales; by hand."""

    LAYERS = {"conv": _u8([2, 4, 4, 8]), "fc": _u8([0, 32])}

    def test_one_per_layer_and_width(self):
        size = size_report(BitMap("per_channel", self.LAYERS, codebook="tensor"), SHAPES, rest=REST)
        # channel 0: 3 weights, fewer than 4 values; channels 1 and 2: 6 weights of 16; channel 3: 3 weights of 256
        assert size.scales == 4 * (3 + 6 + 3)
        assert size.weights == math.ceil(3 * (2 + 4 + 4 + 8) / 8) + 4 * 32 // 8

    def test_one_per_channel(self):
        large = BitMap("per_channel", {"conv": _u8([1, 2, 4, 0])}, codebook="channel")
        assert size_report(large, {"conv": (4, 100)}, rest=0).scales == 4 * (2 + 4 + 16)

    def test_one_width_for_a_layer(self):
        books = {per: BitMap("per_tensor", {"fc": _u8(4)}, codebook=per) for per in ("tensor", "channel")}
        sizes = {per: size_report(bits, {"fc": (10, 100)}, rest=0).scales for per, bits in books.items()}
        assert sizes == {"tensor": 4 * 16, "channel": 4 * 16 * 10}
