"""params.yaml is read as DVC reads it; DVC's own parser is the oracle."""

from __future__ import annotations

import math

import pytest
import yaml
from dvc.utils.serialize import dumps_yaml, parse_yaml

from fairquant.config.load import load_config
from fairquant.config.yaml_core import read_yaml, write_yaml
from fairquant.errors import ConfigError

TEXTS = (
    "a: off", "a: on", "a: no", "a: Yes", "a: y", "a: true", "a: TRUE", "a: False", "a: 'off'", 'a: "true"', "a: null",
    "a: ~", "a:", "a: Null", "a: 12", "a: -3", "a: +3", "a: 0x1F", "a: 0o17", "a: 1_000", "a: 1e-3", "a: 1E5", "a: .5",
    "a: 1.", "a: -1.5e+3", "a: .inf", "a: -.INF", "a: 12:30", "a: 1:2:3", "a: I", "a: ≥60", "a: 3-9",
    "a: [x, off, 1e2]", "a: {b: no, c: {d: 2}}", "on: off", "a: &n {x: 1}\nb: {<<: *n, x: 2}", "a: |\n  two\n  lines\n",
    "# nothing but this",
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_values_are_those_that_dvc_reads(text):
    ours, theirs = read_yaml(text, source="params.yaml"), parse_yaml(text, "params.yaml")
    assert ours == (theirs or None)
    assert repr(ours) == repr(theirs or None)  # 1, 1.0 and true are equal, and three types


def test_dates_are_text_and_nan_is_a_number():
    assert read_yaml("{a: 2026-02-30, b: 2026-05-01}", source="p") == {"a": "2026-02-30", "b": "2026-05-01"}
    assert math.isnan(read_yaml("a: .nan", source="p")["a"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2", "the key 'a' stands twice"),
        ("a: {b: 1, c: 2, b: 3}", "the key 'b' stands twice"),
        ('a: "x\\0y"', "the character '\\x00'"),
        ('a: "\\ud800"', "the character '\\ud800'"),
        ("a: 9" + "9" * 5000, "a number of 5001 digits"),
        ("a: 0x" + "f" * 5000, "a number of 5002 digits"),
        ("a: " + "[" * 3000, "too deep to read"),
        ("a: !!int foo", "invalid literal"),
        ("a: !!bool foo", "'foo'"),
        ("a: !!timestamp foo", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: [x", "while parsing a flow sequence"),
    ],
)
def test_what_is_no_yaml_is_one_line(text, said):
    with pytest.raises(ConfigError) as error:
        read_yaml(text, source="my.yaml")
    line = str(error.value)
    assert line.startswith("my.yaml: not valid YAML: ") and said in line and line.isprintable()


@pytest.mark.parametrize(
    "values",
    [
        {"a": "off", "b": "1e-3", "c": "010", "d": "0o7", "e": "null", "f": "12:30", "g": "2026-05-01", "h": "é ≥60"},
        {"a": [1, True, None, 1e-05, -0.5, 10**18], "no": {"yes": "no"}, "text": "two\nlines", "empty": ""},
    ],
)
def test_what_is_written_comes_back_from_every_reader(values):
    text = write_yaml(values)
    assert read_yaml(text, source="p") == values
    assert yaml.safe_load(text) == values
    assert parse_yaml(text, "p") == values


def test_what_dvc_writes_for_an_experiment_is_what_was_typed(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(dumps_yaml({"pretrain": {"augment": "off", "lr": 1e-3}, "data": {"group": ["yes", "no"]}}))
    assert "augment: off" in path.read_text()  # without quotes: YAML 1.2
    config = load_config(path, meta=None)
    assert (config.pretrain.augment, config.pretrain.lr, config.data.group) == ("off", 0.001, ("yes", "no"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"pretrain: {{batch_size: 1{'0' * 30}}}", "pretrain.batch_size: got 1000000000000000000000000000000; allowed: "
         "a whole number of at most 18 digits"),
        (f"data: {{train_subset: 1{'0' * 390}}}", "data.train_subset: got "),
    ],
)  # fmt: skip
def test_numbers_that_no_machine_counts_to(tmp_path, text, line):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "params.yaml", meta=None)
    assert line in str(error.value)
