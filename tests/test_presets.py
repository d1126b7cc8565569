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
PUBLISHED = ("uniform4_ft", "uniform8_ft", "hawq", "fairgrape", "fairquantize", "fq_qat", "fq_iterative", "fq_baq")
ACTIVATIONS = {
    "w16a16": (16, "fair_static_qat"), "w8a8": (8, "fair_static_qat"), "w4a4": (4, "fair_static_qat"),
    "w8a8_ptq": (8, "ptq_static"), "w4a4_ptq": (4, "ptq_static"), "dynamic8": (8, "ptq_dynamic"),
}  # fmt: skip
TUNED = (*PUBLISHED, *(name for name, (_, mode) in ACTIVATIONS.items() if mode == "fair_static_qat"), "ours")
OURS = ("ours_static", "ours")


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


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_weights_and_activations_of_one_width(name):
    bits, mode = ACTIVATIONS[name]
    config = parse_config(params_of(name))
    assert (config.quant_mode, config.allocator, config.assign.uniform_bits) == (mode, "uniform", bits)
    assert config.quantize.activations.bits == bits
    assert config.quantize.fairness_weight == 0 or mode.startswith("ptq")


def test_other_presets_leave_activations_to_the_user():
    assert {name for name, preset in presets.PRESETS.items() if "quantize.activations.bits" in preset.settings} == set(
        ACTIVATIONS
    )


def test_kmeans4_trains_codebooks_of_layers():
    config = parse_config(params_of("kmeans4", **{"quantize.codebook.per": "channel", "quantize.codebook.tune": False}))
    assert (config.quant_mode, config.allocator, config.assign.uniform_bits) == ("kmeans", "uniform", 4)
    assert (config.quantize.codebook.per, config.quantize.codebook.tune) == ("tensor", True)
    assert (config.quantize.fairness_weight, config.quantize.distill.weight) == (0, 0)


def test_hybrid4_is_a_backbone_of_4_bits_under_a_full_precision_classifier():
    config = parse_config(params_of("hybrid4"))
    assert config.quant_mode == "hybrid"
    assert (config.quantize.hybrid.backbone_bits, config.quantize.hybrid.classifier_bits) == (4, 32)


@pytest.mark.parametrize(("name", "mode"), [("ours_static", "fair_static"), ("ours", "fair_static_qat")])
def test_ours_spend_a_budget_on_the_worst_groups(name, mode):
    config = parse_config(params_of(name))
    assert (config.importance_metric, config.reducer, config.allocator) == ("fisher", "cvar", "optimal")
    assert config.quant_mode == mode
    assert (config.quantize.scale, config.quantize.correction_images) == ("weighted", 2048)


def test_ours_is_ours_static_fine_tuned():
    static, tuned = (presets.get(name).settings for name in OURS)
    assert set(static) < set(tuned)
    assert {key for key in static if tuned[key] != static[key]} == {"quant_mode"}
    more = {key: value for key, value in tuned.items() if key not in static}
    assert more == {
        "quantize.fairness_loss": "compression_drop",
        "quantize.fairness_weight": 1,
        "quantize.distill.weight": 4,
        "quantize.distill.temperature": 2,
    }


def test_who_takes_a_fairness_loss_and_which():
    sections = {name: parse_config(params_of(name)).quantize for name in TUNED}
    fair = {name: section.fairness_loss for name, section in sections.items() if section.fairness_weight > 0}
    assert fair == {**dict.fromkeys(("fq_qat", "fq_iterative", "fq_baq"), "gap"), "ours": "compression_drop"}


def test_only_ours_is_distilled_and_corrected_by_itself():
    sections = {name: parse_config(params_of(name)).quantize for name in presets.PRESETS}
    assert {name for name, section in sections.items() if section.distill.weight > 0} == {"ours"}
    assert {name for name, section in sections.items() if section.correction_images > 0} == set(OURS)


def test_no_preset_depends_on_what_params_yaml_chooses():
    """Whatever method params.yaml holds, a preset's own choices come out the same."""
    other = {"reducer": "cvar", "importance_metric": "gradient", "allocator": "uniform", "quant_mode": "fair_static",
             "quantize.fairness_loss": "none", "quantize.fairness_weight": 0.5}  # fmt: skip
    for name in presets.PRESETS:
        here, there = parse_config(params_of(name)), parse_config(params_of(name, **other))
        assert here.quant_mode == there.quant_mode
        if here.quant_mode not in ("none", "uniform", "hybrid"):
            assert here.allocator == there.allocator
            if here.allocator != "uniform":
                assert (here.reducer, here.importance_metric) == (there.reducer, there.importance_metric)


def test_ours_depend_on_params_yaml_the_least():
    """A step-size method of their own, which other presets' modes may not know, and all that fine-tuning adds."""
    other = {
        "quantize.scale": "mse", "quantize.correction_images": 7, "quantize.fairness_loss": "none",
        "quantize.fairness_weight": 0.5, "quantize.distill.weight": 9, "quantize.distill.temperature": 3,
    }  # fmt: skip
    here, there = (parse_config(params_of("ours", **changes)) for changes in ({}, other))
    assert here == there
    static = parse_config(params_of("ours_static", **other))
    assert (static.quantize.scale, static.quantize.correction_images) == ("weighted", 2048)


def test_budget_epochs_and_data_stay_the_users():
    shared = ("assign.bits", "assign.levels", "granularity", "quantize.epochs", "quantize.lr")
    steps = ("quantize.scale", "quantize.correction_images")  # ours chooses them with the widths
    for name, preset in presets.PRESETS.items():
        assert not set(shared) & set(preset.settings)
        assert set(steps) & set(preset.settings) == (set(steps) if name in OURS else set())
        assert not [key for key in preset.settings if key.startswith(("budget", "assign.optimal"))]
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
        "-S allocator=uniform -S assign.uniform_bits=4 -S quant_mode=fair_static_qat -S quantize.fairness_weight=0 "
        "-S quantize.distill.weight=0\n"
    )
    assert presets.main(["ours_static"]) == 0
    assert capsys.readouterr().out == (
        "-S importance_metric=fisher -S reducer=cvar -S assign.reducers.cvar.alpha=0.5 -S allocator=optimal "
        "-S quantize.scale=weighted -S quantize.correction_images=2048 -S quant_mode=fair_static\n"
    )
    assert presets.main(["fairquantize"]) == 0
    assert "-S 'assign.reducers.subtractive.unprivileged=<group>'" in capsys.readouterr().out
    assert presets.main(["nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: method: got 'nothing'; allowed: fp32 | ")


def test_presets_do_not_import_torch():
    program = "import sys, fairquant.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
