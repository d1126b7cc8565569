"""A stage reads exactly the parameters that dvc.yaml watches for it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from fairquant.config import Config
from fairquant.stage import StageParams

ROOT = Path(__file__).resolve().parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def reads(stage: str) -> set[str]:
    """Return the keys a stage script passes to ``stage.run(main, reads=…)``."""
    for node in ast.walk(ast.parse((ROOT / f"stages/{stage}.py").read_text())):
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg == "reads":
                    return set(ast.literal_eval(keyword.value))
    raise AssertionError(f"stages/{stage}.py does not say what it reads")


def watched(stage: str) -> set[str]:
    """Return the keys that dvc.yaml watches; a whole-file entry is every key, a templated one its section."""
    keys: set[str] = set()
    for entry in STAGES[stage]["params"]:
        keys |= set(Config.model_fields) if isinstance(entry, dict) else {entry.split(".${")[0]}
    return keys


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_params_are_exact(stage):
    assert reads(stage) - {"workers"} == watched(stage) - {"workers"}


def test_every_stage_script_is_in_dvc_yaml():
    assert {path.stem for path in (ROOT / "stages").glob("[a-z]*.py")} == set(STAGES)


def test_params_yaml_and_schema_have_the_same_keys():
    def keys(value: object, prefix: str = "") -> set[str]:
        if not isinstance(value, dict):
            return {prefix}
        return {key for name, item in value.items() for key in keys(item, f"{prefix}.{name}")}

    plugin_tables = (
        ".datasets",
        ".importance.metrics",
        ".assign.reducers",
        ".quantize.losses",
        ".evaluate.postprocessors",
    )
    written = {k for k in keys(yaml.safe_load((ROOT / "params.yaml").read_text())) if not k.startswith(plugin_tables)}
    known = {k for k in keys(Config().model_dump()) if not k.startswith(plugin_tables)}
    assert written == known


def test_undeclared_parameters_are_refused():
    params = StageParams(Config(), ("seed",))
    assert params.seed == 0
    with pytest.raises(AttributeError, match="reads 'reducer' without declaring it; declared: seed"):
        _ = params.reducer


def test_a_key_of_a_section_is_declared_by_its_path():
    params = StageParams(Config(), ("seed", "quantize.scale", "quantize.baq.bit_min"))
    assert params.quantize.scale == "absmax"
    assert params.quantize.baq.bit_min == 2
    with pytest.raises(AttributeError, match="'quantize.epochs' without declaring it; declared: quantize.scale"):
        _ = params.quantize.epochs
    with pytest.raises(AttributeError, match="reads 'quantize.baq.bit_max'"):
        _ = params.quantize.baq.bit_max
