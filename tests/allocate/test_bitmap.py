import re

import numpy as np
import pytest

from fairquant import artifacts
from fairquant.allocate.bitmap import BitMap, unit_shape
from fairquant.errors import ArtifactError

SHAPES = {"z.conv": (2, 3, 2, 2), "a.fc": (3, 4)}


def _u8(value):
    return np.array(value, dtype=np.uint8)


MAPS = {
    "per_tensor": BitMap("per_tensor", {"z.conv": _u8(4), "a.fc": _u8(8)}),
    "per_channel": BitMap("per_channel", {"z.conv": _u8([2, 4]), "a.fc": _u8([8, 8, 32])}),
    "per_param": BitMap(
        "per_param",
        {"z.conv": _u8([[[[2, 2], [2, 2]]] * 3, [[[2, 4], [4, 4]]] * 3]), "a.fc": np.full((3, 4), 0, dtype=np.uint8)},
    ),
}


@pytest.mark.parametrize("granularity", MAPS)
def test_saved_and_loaded_whole_and_in_model_order(tmp_path, granularity):
    bits = MAPS[granularity]
    bits.save(tmp_path / "bits.safetensors")
    loaded = BitMap.load(tmp_path / "bits.safetensors")
    assert loaded.granularity == granularity
    assert list(loaded.layers) == ["z.conv", "a.fc"]
    for name in SHAPES:
        assert loaded.layers[name].dtype == np.uint8
        assert loaded.layers[name].shape == unit_shape(granularity, SHAPES[name])
        np.testing.assert_array_equal(loaded.layers[name], bits.layers[name])


def test_same_bits_same_bytes(tmp_path):
    for name in ("one", "two"):
        MAPS["per_channel"].save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_another_kind_of_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    artifacts.write_tensors(path, {"w": np.zeros(2)}, meta={"kind": "model"})
    line = f"{path}: got a file of kind 'model'; allowed: the bits assign writes"
    with pytest.raises(ArtifactError, match=f"^{re.escape(line)}$"):
        BitMap.load(path)


@pytest.mark.parametrize(
    "granularity, by, expected",
    [
        ("per_tensor", "parameters", (24 * 4 + 12 * 8) / 36),
        ("per_tensor", "channels", (2 * 4 + 3 * 8) / 5),
        ("per_tensor", "units", 6.0),
        ("per_channel", "parameters", (12 * 2 + 12 * 4 + 8 * 8 + 4 * 32) / 36),
        ("per_channel", "channels", (2 + 4 + 8 + 8 + 32) / 5),
        ("per_channel", "units", (2 + 4 + 8 + 8 + 32) / 5),
        ("per_param", "parameters", (15 * 2 + 9 * 4) / 36),
        ("per_param", "channels", (2 + 3.5) / 5),
        ("per_param", "units", (15 * 2 + 9 * 4) / 36),
    ],
)
def test_average_bits_by_hand(granularity, by, expected):
    assert MAPS[granularity].average(SHAPES, by=by) == pytest.approx(expected, rel=1e-12)


def test_shares_by_hand():
    assert MAPS["per_channel"].shares(SHAPES) == pytest.approx({2: 12 / 36, 4: 12 / 36, 8: 8 / 36, 32: 4 / 36})
    by_channels = MAPS["per_channel"].shares(SHAPES, by="channels")
    assert by_channels == pytest.approx({2: 0.2, 4: 0.2, 8: 0.4, 32: 0.2})
    # the second conv channel is a quarter 2 bits and three quarters 4 bits
    assert MAPS["per_param"].shares(SHAPES, by="channels") == pytest.approx({0: 0.6, 2: 0.25, 4: 0.15})


@pytest.mark.parametrize("by", ["parameters", "channels", "units"])
@pytest.mark.parametrize("granularity", MAPS)
def test_shares_sum_to_one_and_agree_with_the_average(granularity, by):
    shares = MAPS[granularity].shares(SHAPES, by=by)
    assert sum(shares.values()) == pytest.approx(1)
    assert sum(width * share for width, share in shares.items()) == pytest.approx(
        MAPS[granularity].average(SHAPES, by=by)
    )


@pytest.mark.parametrize("granularity", MAPS)
def test_broadcastable_against_the_weight(granularity):
    for name, shape in SHAPES.items():
        bits = MAPS[granularity].broadcastable(name, shape)
        full = np.broadcast_to(bits, shape)
        assert bits.ndim == len(shape)
        for channel in range(shape[0]):
            row = MAPS[granularity].layers[name]
            expected = row if row.ndim == 0 else row[channel]
            np.testing.assert_array_equal(full[channel], np.broadcast_to(expected, shape[1:]))


def test_counts_and_widths():
    assert MAPS["per_channel"].counts("a.fc") == {8: 2, 32: 1}
    assert MAPS["per_tensor"].counts("a.fc") == {8: 1}
    assert MAPS["per_param"].widths() == (0, 2, 4)


def test_filled_is_one_width_everywhere():
    bits = BitMap.filled(SHAPES, 32)
    assert bits.granularity == "per_tensor"
    assert bits.average(SHAPES) == 32
    assert list(bits.layers) == list(SHAPES)


def test_a_map_without_layers_has_no_average():
    with pytest.raises(ArtifactError, match="^bit map: got no layers; allowed: at least one quantizable layer$"):
        BitMap("per_tensor", {}).average({})


class TestSteps:
    """Step sizes that were chosen with the widths."""

    STEPS = {
        "per_tensor": {"z.conv": np.float32([[0.5]]), "a.fc": np.float32([[0.25]])},
        "per_channel": {"z.conv": np.float32([[0.5], [0.1]]), "a.fc": np.float32([[1], [2], [3]])},
        "per_param": {"z.conv": np.float32([[0.5, 1], [0.1, 0.2]]), "a.fc": np.float32([[1], [2], [3]])},
    }

    @pytest.mark.parametrize("granularity", MAPS)
    def test_saved_and_loaded_with_the_widths(self, tmp_path, granularity):
        bits = BitMap(granularity, MAPS[granularity].layers, self.STEPS[granularity])
        bits.save(tmp_path / "bits.safetensors")
        loaded = BitMap.load(tmp_path / "bits.safetensors")
        assert list(loaded.layers) == list(loaded.steps) == ["z.conv", "a.fc"]
        for name in SHAPES:
            assert loaded.steps[name].dtype == np.float32
            np.testing.assert_array_equal(loaded.steps[name], self.STEPS[granularity][name])
            np.testing.assert_array_equal(loaded.layers[name], bits.layers[name])

    def test_of_some_layers_alone(self, tmp_path):
        BitMap("per_tensor", MAPS["per_tensor"].layers, {"a.fc": np.float32([[2]])}).save(tmp_path / "x")
        assert list(BitMap.load(tmp_path / "x").steps) == ["a.fc"]

    def test_there_are_none_unless_given(self, tmp_path):
        MAPS["per_channel"].save(tmp_path / "without")
        assert MAPS["per_channel"].steps == BitMap.load(tmp_path / "without").steps == {}
        assert sorted(artifacts.read_tensors(tmp_path / "without")[0]) == ["a.fc", "z.conv"]

    def test_a_layer_may_be_named_like_a_step(self, tmp_path):
        layers = {"step/fc": _u8(2), "fc": _u8(4)}
        BitMap("per_tensor", layers).save(tmp_path / "x")
        assert list(BitMap.load(tmp_path / "x").layers) == ["step/fc", "fc"]
