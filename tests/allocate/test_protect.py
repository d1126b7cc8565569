import re

import pytest

from fairquant.allocate.protect import matching_layers, protected_widths
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
