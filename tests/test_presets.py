"""Every preset is a valid params.yaml and says all that makes the method what it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fairquant import presets
from fairquant.config.load import check_groups, parse_config
from fairquant.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
TUNED = ("uniform4_ft", "uniform8_ft", "hawq", "fairgrape", "fairquantize", "fq_qat", "fq_iterative", "fq_baq")


def params_of(name: str, **changes: object) -> dict[str, object]:
    """params.yaml with the preset's settings and the keys it leaves to the user."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    preset = presets.get(name)
    groups = dict(zip(preset.needs, ("dark", "light"), strict=True)) if preset.needs else {}
    for key, value in {**changes, **preset.settings, **groups}.items():
        *sections, leaf = key.split(".")
        target = params
        for section in sections:
            target = target[section]
        assert leaf in target, f"{key} is not in params.yaml"
        target[leaf] = value
    return params


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_is_a_valid_configuration(name):
    config = parse_config(params_of(name))
    check_groups(config, ["dark", "light"])


def test_presets_are_named_by_their_key_and_explained_in_one_line():
    for name, preset in presets.PRESETS.items():
        assert preset.name == name
        assert preset.meaning
        assert preset.source
        assert "\n" not in preset.meaning + preset.source


def test_the_published_methods_are_what_was_published():
    def chosen(name: str) -> tuple[object, ...]:
        config = parse_config(params_of(name))
        return config.importance_metric, config.reducer, config.allocator, config.quant_mode

    assert chosen("fairgrape") == ("grape", "max", "levels", "fair_static_qat")
    assert chosen("fairquantize") == ("grape", "subtractive", "levels", "fair_static_qat")
    assert chosen("hawq") == ("hawq", "mean", "levels", "fair_static_qat")
    assert chosen("fq_static") == ("grape", "balanced", "levels", "fair_static")
    assert chosen("fq_qat") == ("grape", "balanced", "levels", "fair_static_qat")
    assert chosen("fq_iterative") == ("grape", "balanced", "levels", "iterative_qat")
    assert chosen("fq_baq") == ("grape", "balanced", "levels", "baq_learnable")


@pytest.mark.parametrize("bits", [4, 8])
def test_uniform_presets_are_one_width(bits):
    plain, tuned = (parse_config(params_of(f"uniform{bits}{suffix}")) for suffix in ("", "_ft"))
    assert (plain.quant_mode, plain.quantize.uniform_bits) == ("uniform", bits)
    assert (tuned.quant_mode, tuned.allocator, tuned.assign.uniform_bits) == ("fair_static_qat", "uniform", bits)


def test_only_ours_take_the_fairness_loss():
    weights = {name: parse_config(params_of(name)).quantize.fairness_weight for name in TUNED}
    ours = {"fq_qat", "fq_iterative", "fq_baq"}
    assert {name for name, weight in weights.items() if weight > 0} == ours
    assert {parse_config(params_of(name)).quantize.fairness_loss for name in sorted(ours)} == {"gap"}


def test_no_preset_depends_on_what_params_yaml_chooses():
    """Whatever method params.yaml holds, a preset's own choices come out the same."""
    other = {"reducer": "cvar", "importance_metric": "gradient", "allocator": "uniform", "quant_mode": "fair_static",
             "quantize.fairness_loss": "none", "quantize.fairness_weight": 0.5}  # fmt: skip
    for name in presets.PRESETS:
        here, there = parse_config(params_of(name)), parse_config(params_of(name, **other))
        assert here.quant_mode == there.quant_mode
        if here.quant_mode not in ("none", "uniform"):
            assert here.allocator == there.allocator
            if here.allocator != "uniform":
                assert (here.reducer, here.importance_metric) == (there.reducer, there.importance_metric)


def test_budget_epochs_and_data_stay_the_users():
    shared = ("assign.bits", "assign.levels", "granularity", "quantize.epochs", "quantize.lr", "quantize.scale")
    for preset in presets.PRESETS.values():
        assert not set(shared) & set(preset.settings)
        assert not [key for key in preset.settings if key.startswith(("data", "model", "pretrain", "seed"))]


def test_fairquantize_needs_its_groups_named():
    params = params_of("fairquantize")
    params["assign"]["reducers"]["subtractive"]["privileged"] = None
    with pytest.raises(ConfigError, match="subtractive.privileged: got null; allowed: a group name"):
        parse_config(params)


def test_settings_are_frozen():
    with pytest.raises(TypeError):
        presets.PRESETS["fp32"].settings["quant_mode"] = "uniform"


def test_unknown_preset_is_one_line():
    with pytest.raises(ConfigError) as caught:
        presets.get("fq")
    assert str(caught.value) == f"method: got 'fq'; allowed: {' | '.join(presets.PRESETS)}"


def test_command_line(capsys):
    assert presets.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(presets.PRESETS)
    assert presets.main(["uniform4_ft"]) == 0
    assert capsys.readouterr().out == (
        "-S allocator=uniform -S assign.uniform_bits=4 -S quant_mode=fair_static_qat -S quantize.fairness_weight=0\n"
    )
    assert presets.main(["fairquantize"]) == 0
    assert "-S 'assign.reducers.subtractive.unprivileged=<group>'" in capsys.readouterr().out
    assert presets.main(["nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: method: got 'nothing'; allowed: fp32 | ")


def test_presets_do_not_import_torch():
    program = "import sys, fairquant.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
