"""Reading a finished run's results."""

from __future__ import annotations

import pytest

from fairquant.artifacts import CsvWriter
from fairquant.config import Config
from fairquant.errors import ArtifactError
from fairquant.report.inputs import plain_params, read_csv, read_inputs


def test_everything_is_read(inputs):
    assert inputs.title == "FairQuant report"
    assert inputs.metrics["pretrain"]["best_epoch"] == 2
    assert inputs.metrics["export"]["size"]["onnx_mb"] == 1.5
    assert inputs.data["groups"][0] == "female × <60"
    assert inputs.model["spec"]["name"] == "test_net"
    assert inputs.metrics["quantize"]["bits"]["changed"] == 0.125
    assert [row["layer"] for row in inputs.layers["final"]] == ["conv1", "layer1.0.conv1", "fc"]
    assert inputs.distribution["assigned"][1]["n_2bit"] == "8"
    assert inputs.distribution["final"][1]["n_3bit"] == "12"
    assert inputs.reasons[1]["importance_share:b"] == "0.75"
    assert inputs.budget_curve == ()
    assert [len(rows) for rows in inputs.curves.values()] == [2, 0]
    assert inputs.logs["quantize"] == "nothing was trained\n"


FILES = (
    "metrics/bits.json", "metrics/quantize.json", "plots/bits/layers.csv", "plots/quantize/layers.csv",
    "plots/quantize/bit_distribution.csv", "plots/pretrain/training.log", "plots/bits/bits.csv",
    "plots/bits/pareto.csv", "metrics/export.json", "data/prepared/meta.json", "models/pretrained.json",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(run_folder, name):
    (run_folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}: not found; run the stage that writes it"):
        read_inputs({}, run_folder)


@pytest.mark.parametrize(("text", "got"), [("layer,bits\nconv1,8.0\nfc,4.0\n", "conv1, fc"), ("layer,bits\n", "none")])
def test_widths_of_other_layers_are_refused(run_folder, text, got):
    (run_folder / "plots/quantize/layers.csv").write_text(text)
    with pytest.raises(ArtifactError) as error:
        read_inputs({}, run_folder)
    assert str(error.value) == (
        f"{run_folder}/plots/quantize/layers.csv: got layers {got}; allowed: those of plots/bits/layers.csv, conv1, "
        "layer1.0.conv1, fc (dvc repro)"
    )


REASONS = "layer,kind,parameters,bits\n"


@pytest.mark.parametrize(("text", "got"), [(f"{REASONS}fc,linear,128,4.0\n", "fc"), (REASONS, "none")])
def test_reasons_for_other_layers_are_refused(run_folder, text, got):
    (run_folder / "plots/bits/bits.csv").write_text(text)
    with pytest.raises(ArtifactError) as error:
        read_inputs({}, run_folder)
    assert str(error.value) == (
        f"{run_folder}/plots/bits/bits.csv: got layers {got}; allowed: those of plots/bits/layers.csv, conv1, "
        "layer1.0.conv1, fc (dvc repro)"
    )


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("metrics/evaluate.json", b"{}", "got no overall, worst_group, group, cost; dvc repro evaluate writes it anew"),
        ("models/pretrained.json", b"{}", "got no spec, layers, macs, parameters; dvc repro pretrain writes it anew"),
        ("metrics/export.json", b"[]", "got list; allowed: a JSON object"),
        ("plots/bits/layers.csv", b"", "got the columns none; needed: layer, bits; dvc repro assign writes it anew"),
        (
            "plots/bits/bits.csv",
            b"layer,bits\n",
            "got the columns layer, bits; needed: layer, kind, parameters, bits; ",
        ),
        ("plots/pretrain/curve.csv", b"\xff", "not text ('utf-8' codec can't decode byte 0xff in position 0"),
        ("plots/quantize/training.log", b"\xff", "; dvc repro quantize writes it anew"),
    ],
)
def test_a_damaged_file_is_one_line(run_folder, name, data, message):
    (run_folder / name).write_bytes(data)
    with pytest.raises(ArtifactError) as error:
        read_inputs({}, run_folder)
    assert str(error.value).startswith(f"{run_folder}/{name}: ")
    assert message in str(error.value)


def test_the_curve_of_a_budget_is_read(spent_inputs):
    assert [row["budget"] for row in spent_inputs.budget_curve] == ["chosen"] * 2 + ["1.0"] * 2 + ["4.0"] * 2
    assert spent_inputs.reasons[0]["loss:a.x"] == ""


@pytest.mark.parametrize("row", ["1", "1,2,3"])
def test_a_row_of_another_length_is_named(tmp_path, row):
    (tmp_path / "t.csv").write_text(f"a,b\n1,2\n{row}\n")
    with pytest.raises(ArtifactError, match="t.csv: row 2: got another number of fields"):
        read_csv(tmp_path / "t.csv")


@pytest.mark.parametrize("name", ["a\u2028b", "a\x0bb", "a\x85b", "a\nb", "a\rb", "a\r\nb", 'a"b', "a,b", " a "])
def test_any_name_comes_back_from_a_table(tmp_path, name):
    with (tmp_path / "t.csv").open("w", encoding="utf-8", newline="") as file:
        CsvWriter(file).writerows([("group", f"loss:{name}"), (name, 0.5), ("plain", 1)])
    assert read_csv(tmp_path / "t.csv") == (
        {"group": name, f"loss:{name}": "0.5"},
        {"group": "plain", f"loss:{name}": "1"},
    )


def test_params_are_plain_values():
    params = plain_params(Config(seed=3))
    assert params["seed"] == 3
    assert params["assign"]["bits"] == [2, 4, 8]
    assert set(params) == set(Config.model_fields)


def test_options_of_the_chosen_plug_ins_are_filled_in():
    params = plain_params(Config(reducer="cvar"))
    assert params["assign"]["reducers"] == {"cvar": {"alpha": 0.5}}
    assert params["datasets"]["synthderm"]["classes"] == "binary"
    assert "grape" in params["importance"]["metrics"]


def test_options_given_are_kept():
    params = plain_params(Config(reducer="cvar", assign={"reducers": {"cvar": {"alpha": 0.75}, "max": {}}}))
    assert params["assign"]["reducers"] == {"cvar": {"alpha": 0.75}, "max": {}}
