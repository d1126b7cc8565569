"""Which experiments a suite has, what is refused before anything is queued."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fairquant.errors import ConfigError, UserError
from scripts.suite.plan import apply, make_plan

ROOT = Path(__file__).resolve().parents[2]
PARAMS = (ROOT / "params.yaml").read_text()
GROUPS = ["assign.reducers.subtractive.unprivileged=IV-VI", "assign.reducers.subtractive.privileged=I-III"]


def plan(methods=("fp32", "uniform4", "fairgrape"), seeds=(0, 1), settings=(), name="first"):
    return make_plan(name, methods, seeds, settings, PARAMS)[0]


def test_tasks_are_settings_then_preset_then_seed():
    task = plan(settings=("debug=true", "quantize.fairness_weight=2")).task("uniform4", 1)
    assert task.name == "first-uniform4-s1"
    assert task.overrides == (
        "debug=true", "quantize.fairness_weight=2", "quant_mode=uniform", "quantize.uniform_bits=4", "seed=1"
    )  # fmt: skip


def test_the_first_run_of_each_seed_goes_before_the_rest():
    first, rest = plan().waves({})
    assert [task.name for task in first] == ["first-fp32-s0", "first-fp32-s1"]
    assert [task.name for task in rest] == [
        "first-uniform4-s0", "first-fairgrape-s0", "first-uniform4-s1", "first-fairgrape-s1"
    ]  # fmt: skip


def test_methods_with_a_reason_are_left_out_and_the_next_goes_first():
    first, rest = plan().waves({"fp32": "why"})
    assert {task.method for task in first} == {"uniform4"}
    assert {task.method for task in rest} == {"fairgrape"}
    assert plan(methods=("fp32",)).waves({"fp32": "why"}) == []


def test_expected_parameters_are_what_dvc_writes():
    made = plan(settings=("data.group=[sex,age]", "model.name=resnet34"))
    params = made.expected("first-fairgrape-s1")
    original = yaml.safe_load(PARAMS)
    assert params["seed"] == 1
    assert params["data"]["group"] == ["sex", "age"]
    assert params["model"] == {**original["model"], "name": "resnet34"}
    assert (params["reducer"], params["quantize"]["fairness_weight"]) == ("max", 0)
    assert params["pretrain"] == original["pretrain"]
    assert made.expected("first-hawq-s1") is None
    assert made.expected("second-fairgrape-s1") is None


def test_apply_reads_values_as_dvc_does():
    params = apply(
        PARAMS, ["datasets.folder.class_names={0:benign,1:malignant}", "pretrain.lr=1e-5", "data.label=null"]
    )
    assert params["datasets"]["folder"]["class_names"] == {0: "benign", 1: "malignant"}
    assert float(params["pretrain"]["lr"]) == 1e-5
    assert params["data"]["label"] is None


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "a b"}, "--name: got 'a b'; allowed: letters, digits, _ and - (it begins experiments' names)"),
        ({"seeds": (0, 0)}, "--seeds: got 0 0; allowed: each value once"),
        ({"seeds": ()}, "--seeds: got none; allowed: each value once"),
        ({"seeds": (-1,)}, "--seeds: got -1; allowed: whole numbers from 0"),
        ({"methods": ("fp32", "fp32")}, "--methods: got fp32 fp32; allowed: each value once"),
        ({"settings": ("debug",)}, "--set: got 'debug'; allowed: KEY=VALUE with a key of params.yaml"),
        ({"settings": ("seed=3",)}, "--set: got 'seed=3'; allowed: --seeds"),
        ({"settings": ("quant_mode=none",)}, "--set: got 'quant_mode=none', which every method fixes; allowed: "
         "settings methods leave open"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(changes, text):
    with pytest.raises(ConfigError) as caught:
        plan(**changes)
    assert str(caught.value) == text


def test_unknown_method_names_the_allowed_ones():
    with pytest.raises(ConfigError, match=r"method: got 'best'; allowed: fp32 \| "):
        plan(methods=("best",))


def test_unknown_keys_and_unreadable_values_are_refused():
    with pytest.raises(UserError, match="--set: Could not override 'data.lable'") as caught:
        plan(settings=("data.lable=x",))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="--set: .*; allowed: KEY=VALUE with a key of params.yaml"):
        plan(settings=("data.label=[x",))


def test_a_mistake_in_settings_of_every_run_is_refused():
    with pytest.raises(ConfigError, match="precision: got 'fp16'; allowed: fp32 | bf16"):
        plan(settings=("precision=fp16",))


def test_a_method_that_cannot_be_configured_gets_its_reason():
    made = plan(methods=("fp32", "fairquantize"))
    assert made.reasons == {
        "fairquantize": "assign.reducers.subtractive.unprivileged: got null; allowed: a group name (reducer: "
        "subtractive needs both)"
    }
    assert plan(methods=("fp32", "fairquantize"), settings=GROUPS).reasons == {}


def test_groups_of_the_data_decide_who_can_run():
    made = plan(methods=("fp32", "fairquantize", "fairgrape"), settings=GROUPS)
    assert made.refused(["I-III", "IV-VI"]) == {}
    assert made.refused(["I", "II", "III"]) == {
        "fairquantize": "reducer: got 'subtractive' with 3 groups (I, II, III); allowed: exactly two groups"
    }
