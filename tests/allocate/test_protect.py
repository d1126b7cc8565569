import re

import numpy as np
import pytest

from fairquant.allocate.protect import matching_layers, protected_widths, sensitive_widths, sensitivities
from fairquant.config.schema import ProtectSection
from fairquant.errors import ConfigError

LAYERS = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer4.0.conv1", "fc"]
ROLES = {"first": "conv1", "last": "fc", "classifier": "fc"}


@pytest.mark.parametrize(
    "entries, held",
    [
        ((), []),
        (("first",), ["conv1"]),
        (("last", "classifier"), ["fc"]),
        (("fc",), ["fc"]),
        (("layer1.*", "layer4.*"), ["layer1.0.conv1", "layer1.0.conv2", "layer4.0.conv1"]),
        (("*.conv1",), ["layer1.0.conv1", "layer4.0.conv1"]),
        (("layer[14].0.conv1", "first"), ["conv1", "layer1.0.conv1", "layer4.0.conv1"]),
        (("*",), LAYERS),
    ],
)
def test_patterns_and_roles(entries, held):
    widths = protected_widths(ProtectSection(layers=entries, bits=16), LAYERS, ROLES)
    assert list(widths) == held
    assert set(widths.values()) <= {16}


def test_one_name_may_stand_for_a_list_and_32_bits_is_the_default():
    assert protected_widths(ProtectSection(layers="classifier"), LAYERS, ROLES) == {"fc": 32}


@pytest.mark.parametrize(
    "entry, close",
    [
        ("layer1.0.conv9", "layer1.0.conv2, layer1.0.conv1, layer4.0.conv1)"),
        ("FC", "fc)"),
        ("@", "conv1, layer1.0.conv1, layer1.0.conv2)"),
    ],
)
def test_an_entry_that_matches_nothing_names_close_layers(entry, close):
    line = (
        f"assign.protect.layers: got '{entry}', which matches no layer; "
        f"allowed: first | last | classifier | a pattern of layer names (close: {close}"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(line)}$"):
        protected_widths(ProtectSection(layers=("fc", entry)), LAYERS, ROLES)


def test_a_role_the_model_does_not_have():
    with pytest.raises(ConfigError, match="got 'classifier', which matches no layer"):
        protected_widths(ProtectSection(layers="classifier"), LAYERS, {"first": "conv1", "last": "fc"})


def test_layers_of_one_entry_for_any_key():
    assert matching_layers("some.key", "layer1.*", LAYERS, ROLES) == ["layer1.0.conv1", "layer1.0.conv2"]
    assert matching_layers("some.key", "first", LAYERS, ROLES) == ["conv1"]
    assert matching_layers("some.key", "fc", LAYERS, {}) == ["fc"]
    line = (
        "some.key: got 'fcc', which matches no layer; allowed: first | last | classifier | a pattern of layer names "
        "(close: fc)"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(line)}$"):
        matching_layers("some.key", "fcc", LAYERS, ROLES)


def test_a_layer_named_like_a_role_is_found_where_the_role_is_not_known():
    assert matching_layers("some.key", "last", ["first", "last"], {"first": "first"}) == ["last"]


class TestSensitive:
    """Four layers of 10, 20, 30 and 40 weights; two groups whose whole importance is 10 and 1000."""

    SHAPES = {"a": (2, 5), "b": (4, 5), "c": (6, 5), "d": (8, 5)}
    SIZES = {"a": 10, "b": 20, "c": 30, "d": 40}
    TOTALS = {
        "a": np.array([1.0, 100.0]),
        "b": np.array([1.0, 800.0]),
        "c": np.array([6.0, 60.0]),
        "d": np.array([2.0, 40.0]),
    }

    def test_share_of_importance_over_share_of_weights_for_the_group_that_needs_it_most(self):
        # shares: a .1, .1; b .1, .8; c .6, .06; d .2, .04; of the weights: .1, .2, .3, .4
        assert sensitivities(self.TOTALS, self.SIZES) == pytest.approx({"a": 1.0, "b": 4.0, "c": 2.0, "d": 0.5})

    def test_a_group_with_large_losses_does_not_decide_alone(self):
        louder = {name: part * np.array([1.0, 1e6]) for name, part in self.TOTALS.items()}
        assert sensitivities(louder, self.SIZES) == pytest.approx(sensitivities(self.TOTALS, self.SIZES))

    def test_a_group_to_which_nothing_matters_has_no_share(self):
        assert sensitivities({"a": np.array([0.0, 1.0]), "b": np.zeros(2)}, {"a": 1, "b": 1}) == {"a": 2.0, "b": 0.0}

    @pytest.mark.parametrize(("number", "found"), [(0, []), (1, ["b"]), (2, ["b", "c"]), (3, ["a", "b", "c"])])
    def test_the_most_sensitive_are_held_in_model_order(self, number, found):
        protect = ProtectSection(sensitive=number, sensitive_bits=16)
        assert sensitive_widths(protect, self.TOTALS, self.SHAPES, {}) == dict.fromkeys(found, 16)

    def test_named_layers_are_not_counted_again(self):
        protect = ProtectSection(sensitive=2)
        assert list(sensitive_widths(protect, self.TOTALS, self.SHAPES, {"b": 32})) == ["a", "c"]

    def test_equals_are_taken_in_model_order(self):
        equal = dict.fromkeys(("x", "y", "z"), np.ones(2))
        shapes = dict.fromkeys(("x", "y", "z"), (2, 2))
        assert list(sensitive_widths(ProtectSection(sensitive=2), equal, shapes, {})) == ["x", "y"]

    def test_more_than_there_are(self):
        line = (
            "assign.protect.sensitive: got 4; allowed: at most 3, the model's layers that assign.protect.layers does "
            "not name"
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(line)}$"):
            sensitive_widths(ProtectSection(sensitive=4), self.TOTALS, self.SHAPES, {"a": 32})
