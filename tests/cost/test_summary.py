import re

import numpy as np
import pytest

from fairquant.allocate.bitmap import BitMap
from fairquant.cost.summary import bit_distribution, layer_shares, summarise_bits, summarise_widths, to_csv
from fairquant.errors import ArtifactError

INFO = {
    "layers": {"conv.0": {"shape": [4, 3, 1, 1], "kind": "conv2d"}, "fc": {"shape": [2, 4], "kind": "linear"}},
    "roles": {},
    "parameters": {"rest": 22},
    "macs": {"conv.0": 1_000_000, "fc": 8_000},
}
BITS = BitMap("per_channel", {"conv.0": np.array([2, 4, 4, 8], np.uint8), "fc": np.array([8, 8], np.uint8)})


def test_metrics_by_hand():
    metrics = summarise_bits(BITS, INFO)
    assert metrics["avg_bits"] == pytest.approx({"by_parameter": (3 * 18 + 8 * 8) / 20, "by_channel": 34 / 6})
    assert metrics["gbops"] == pytest.approx((1_000_000 * 4.5 + 8_000 * 8) * 32 / 1e9)
    assert metrics["share"] == {
        "2bit": pytest.approx({"parameters": 3 / 20, "channels": 1 / 6}),
        "4bit": pytest.approx({"parameters": 6 / 20, "channels": 2 / 6}),
        "8bit": pytest.approx({"parameters": 11 / 20, "channels": 3 / 6}),
    }
    assert metrics["size"]["fp32_mb"] == pytest.approx(4 * 42 / 1e6)
    assert metrics["size"]["reference_mb"] == pytest.approx(15 / 1e6)  # 118 bits
    assert metrics["size"]["ratio"] == pytest.approx(metrics["size"]["fp32_mb"] / metrics["size"]["packed_mb"])


def test_activations_by_hand():
    metrics, plain = summarise_bits(BITS, INFO, activation_bits={"conv.0": 8}), summarise_bits(BITS, INFO)
    assert metrics["gbops"] == pytest.approx((1_000_000 * 4.5 * 8 + 8_000 * 8 * 32) / 1e9)
    assert metrics["activation_bits"] == pytest.approx((1_000_000 * 8 + 8_000 * 32) / 1_008_000)
    assert list(metrics) == ["avg_bits", "size", "gbops", "activation_bits", "share"]
    assert summarise_bits(BITS, INFO, activation_bits={}) == plain and "activation_bits" not in plain
    widths = summarise_widths(BITS, BITS, INFO, activation_bits={"conv.0": 8, "fc": 8})
    assert widths["bits"]["activations"] == 8


def test_no_metric_key_holds_a_dot():
    def keys(value):
        return [k for key, item in value.items() for k in [key, *(keys(item) if isinstance(item, dict) else [])]]

    assert not [key for key in keys(summarise_bits(BITS, INFO)) if "." in key]


def test_layer_table_by_hand():
    assert to_csv(layer_shares(BITS)) == (
        "layer,bits,share_2bit,share_4bit,share_8bit\nconv.0,4.5,0.25,0.5,0.25\nfc,8.0,0.0,0.0,1.0\n"
    )


def test_bit_distribution_by_hand():
    assert to_csv(bit_distribution(BITS, INFO)) == (
        "layer,kind,parameters,units,n_2bit,n_4bit,n_8bit,avg_bits\n"
        "conv.0,conv2d,12,4,1,2,1,4.5\nfc,linear,8,2,0,0,2,8.0\n"
    )


@pytest.mark.parametrize(
    "layers, line",
    [
        ({"fc": [8, 8]}, "bits of layer conv.0: got shape None; allowed: (4,), as the model has it"),
        (
            {"conv.0": [8] * 4, "fc": [8] * 3},
            "bits of layer fc: got shape (3,); allowed: (2,), as the model has it",
        ),
        (
            {"conv.0": [8] * 4, "fc": [8, 8], "x": [8]},
            "bits of layer x: got shape (1,); allowed: None, as the model has it",
        ),
    ],
)
def test_bits_of_another_model_are_refused(layers, line):
    bits = BitMap("per_channel", {name: np.array(value, np.uint8) for name, value in layers.items()})
    for function in (summarise_bits, bit_distribution):
        with pytest.raises(ArtifactError, match=f"^{re.escape(line)}$"):
            function(bits, INFO)


class TestWidths:
    def test_by_hand(self):
        final = BitMap("per_channel", {"conv.0": np.array([2, 3, 4, 8], np.uint8), "fc": np.array([8, 4], np.uint8)})
        metrics = summarise_widths(BITS, final, INFO)
        assert metrics["bits"] == pytest.approx(
            {"assigned": (3 * 18 + 8 * 8) / 20, "final": (3 * 17 + 4 * 12) / 20, "changed": 2 / 6}
        )
        assert metrics["share"] == summarise_bits(final, INFO)["share"]

    def test_a_coarser_final_map_counts_for_what_it_covers(self):
        final = BitMap.filled({"conv.0": (), "fc": ()}, 8)
        assert summarise_widths(BITS, final, INFO)["bits"]["changed"] == pytest.approx(3 / 6)

    def test_an_unchanged_map(self):
        assert summarise_widths(BITS, BITS, INFO)["bits"]["changed"] == 0


class TestCsv:
    def test_columns_given_stand_whatever_the_rows_have(self):
        assert to_csv([], ["a", "b"]) == "a,b\n"
        assert to_csv([{"b": 1}, {"a": 2.0, "b": "x"}], ["a", "b"]) == "a,b\n,1\n2.0,x\n"

    def test_a_column_too_many_is_refused(self):
        with pytest.raises(ValueError, match="fields not in fieldnames: 'c'"):
            to_csv([{"a": 1, "c": 2}], ["a", "b"])

    def test_small_numbers_keep_their_digits(self):
        values = [0.0, 1.23456789, 123.456789012, 0.00000123456789, -0.000987654321, 1e-300, 7]
        rows = to_csv([{"v": value} for value in values]).split()[1:]
        assert rows == ["0.0", "1.234568", "123.456789", "1.23457e-06", "-0.000987654", "1e-300", "7"]
