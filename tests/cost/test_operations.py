import numpy as np
import pytest

from fairquant.cost.operations import bops
from fairquant.errors import ArtifactError

MACS = {"conv": 1000, "fc": 60}


def test_hand_values_at_every_granularity():
    per_tensor = {"conv": np.uint8(8), "fc": np.uint8(32)}
    assert bops(MACS, per_tensor, activation_bits=8) == 1000 * 8 * 8 + 60 * 32 * 8
    per_channel = {"conv": np.array([2, 4, 8, 0], np.uint8), "fc": np.array([8, 4], np.uint8)}
    assert bops(MACS, per_channel) == (250 * (2 + 4 + 8 + 0) + 30 * (8 + 4)) * 32
    per_weight = {"conv": np.array([[2, 4], [8, 8]], np.uint8), "fc": np.full((2, 3), 4, np.uint8)}
    assert bops(MACS, per_weight, 4) == (250 * (2 + 4 + 8 + 8) + 60 * 4) * 4


def test_32_bits_everywhere_is_1024_per_mac():
    assert bops(MACS, {name: np.full(3, 32, np.uint8) for name in MACS}) == 1060 * 1024


def test_wide_layers_do_not_overflow():
    assert bops({"a": 10**12}, {"a": np.full(10**5, 255, np.uint8)}) == 10**12 * 255 * 32


@pytest.mark.parametrize("bits", [{"conv": np.uint8(8)}, {"conv": np.uint8(8), "fc": np.uint8(8), "x": np.uint8(8)}])
def test_other_layers_are_named(bits):
    with pytest.raises(ArtifactError, match=r"^bits: got other layers than the model's \((fc|x)\); run assign again$"):
        bops(MACS, bits)
