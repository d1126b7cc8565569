import numpy as np
import pytest

from fairquant.allocate.bitmap import BitMap
from fairquant.cost.bops import bops

MACS = {"conv": 1000, "fc": 60}


def test_channel_by_channel_by_hand():
    bits = BitMap("per_channel", {"conv": np.array([2, 4, 4, 8], np.uint8), "fc": np.array([0, 32, 4], np.uint8)})
    # each conv channel does 250 of the 1000 multiply-accumulates, each fc channel 20 of 60
    assert bops(MACS, bits) == pytest.approx((250 * (2 + 4 + 4 + 8) + 20 * (0 + 32 + 4)) * 32)
    assert bops(MACS, bits, activation_bits=8) == pytest.approx(bops(MACS, bits) / 4)


def test_full_precision_is_macs_times_1024():
    assert bops(MACS, BitMap.filled({"conv": (4, 3, 1, 1), "fc": (3, 4)}, 32)) == 1060 * 32 * 32


def test_single_weights_count_with_the_mean_of_their_channel():
    conv = np.array([[2, 4], [8, 8]], np.uint8)
    assert bops({"conv": 100}, BitMap("per_param", {"conv": conv})) == pytest.approx((50 * 3 + 50 * 8) * 32)


def test_activations_by_layer():
    bits = BitMap.filled({"conv": (), "fc": ()}, 4)
    assert bops(MACS, bits, activation_bits={"conv": 8}) == 1000 * 4 * 8 + 60 * 4 * 32
    assert bops(MACS, bits, activation_bits={}) == bops(MACS, bits)
