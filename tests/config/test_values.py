"""What a valid params.yaml becomes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from fairquant import plugins
from fairquant.config import Config, load_config
from fairquant.config.load import parse_config

ROOT = Path(__file__).resolve().parents[2]


def parsed(text: str) -> Config:
    return parse_config(yaml.safe_load(text))


def test_the_committed_params_are_valid():
    assert isinstance(load_config(ROOT / "params.yaml", meta=None), Config)


def test_defaults_are_valid_and_need_nothing():
    assert parse_config({}) == Config()


def test_bits_and_levels_are_sorted_as_pairs():
    config = parsed("assign: {bits: [8, 2, 4], levels: [0.5, 0.2, 0.3]}")
    assert config.assign.ladder == ((2, 4, 8), (0.2, 0.3, 0.5))


def test_levels_may_miss_one_by_rounding():
    assert parsed("assign: {bits: [2, 4, 8], levels: [0.333333, 0.333333, 0.333334]}").assign.ladder[0] == (2, 4, 8)
    assert parsed("assign: {levels: [0.2, 0.4, 0.4000009]}").assign.levels[2] == 0.4000009


@pytest.mark.parametrize("written", ["1e-05", "1e-5", "0.00001", '"0.00001"'])
def test_numbers_as_dvc_writes_them(written):
    """PyYAML reads 1e-05, which ``dvc exp run -S`` writes, as text."""
    value = parsed(f"pretrain: {{lr: {written}}}").pretrain.lr
    assert isinstance(value, float)
    assert value == 1e-5


@pytest.mark.parametrize(("written", "subset"), [("100", 100), ("0.5", 0.5), ("1", 1.0), ("1.0", 1.0), ("2.0", 2)])
def test_subsets_are_fractions_or_counts(written, subset):
    value = parsed(f"data: {{train_subset: {written}}}").data.train_subset
    assert value == subset
    assert isinstance(value, type(subset))


def test_one_name_is_a_list_of_one():
    assert parsed("data: {group: sex}").data.group == ("sex",)
    assert parsed("data: {group: [sex, age]}").data.group == ("sex", "age")
    assert parsed("data: {group: null}").data.group is None


def test_sections_are_frozen():
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        config.pretrain.lr = 1.0


@pytest.mark.parametrize(("kind", "name"), [("reducer", "cvar"), ("dataset", "synthderm")])
def test_options_are_those_written_or_the_defaults(kind, name):
    assert Config().options(kind, name) == plugins.load(kind, name).Options()


def test_written_options_arrive():
    assert parsed("assign: {reducers: {cvar: {alpha: 0.25}}}").options("reducer", "cvar").alpha == 0.25


def test_options_of_every_plugin_have_valid_defaults():
    for kind in ("dataset", "reducer"):
        for name in plugins.names(kind):
            Config().options(kind, name)


def test_candidate_widths_are_sorted_and_one_pattern_is_a_list():
    section = parsed("assign: {optimal: {bits: [8, 0, 32, 2], couple: ['*.attn.*', [fc1, fc2]]}}").assign.optimal
    assert section.bits == (0, 2, 8, 32)
    assert section.couple == (("*.attn.*",), ("fc1", "fc2"))


@pytest.mark.parametrize("written", ["1e-05", "1e-5", '"0.00001"'])
def test_a_gap_as_dvc_writes_it(written):
    assert parsed(f"assign: {{optimal: {{gap: {written}}}}}").assign.optimal.gap == 1e-5


def test_budgets_are_optional_one_by_one():
    assert parsed("{allocator: optimal, budget: {avg_bits: null, size_mb: 3}}").budget.size_mb == 3
    assert parsed("{allocator: levels, budget: {avg_bits: null}}").budget.avg_bits is None  # nobody reads it


@pytest.mark.parametrize("mode", ["fair_static", "fair_static_qat", "none"])
def test_weighted_steps_go_with_modes_that_keep_the_widths(mode):
    assert parsed(f"{{quant_mode: {mode}, quantize: {{scale: weighted}}}}").quantize.scale == "weighted"
