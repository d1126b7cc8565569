"""The three tables on a tiny classifier: rows against the stages run with the same settings, and the tables by hand."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest
import yaml

from fairquant.artifacts import read_json
from fairquant.config.load import parse_config
from scripts import poster
from scripts.curves.points import with_settings
from scripts.poster import AFTER, CALIBRATED, FAIRALM, FULL, NONE, QUANTIZED, TUNED, Row
from stages import assign, baseline, evaluate, importance, quantize
from tests.scripts.test_curves import TASK, make_workspace

METHOD = "calibrated_equalized_odds"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def measured(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, ...], float]]:
    out = tmp_path_factory.mktemp("poster")
    assert poster.main([str(workspace), "--bits", "3", "--out", str(out)]) == 0
    with (out / "poster.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    keys = ("table", "bits", "mitigation", "measure", "group")
    assert {(row["task"], row["seed"]) for row in rows} == {(TASK, "0")}
    return out, {tuple(row[key] for key in keys): float(row["value"]) for row in rows}


def test_rows(measured):
    found = list(dict.fromkeys(key[:3] for key in measured[1]))
    assert found == [
        *((FULL, "32", name) for name in (NONE, FAIRALM, CALIBRATED)),
        *((QUANTIZED, "3", name) for name in (NONE, FAIRALM, CALIBRATED)),
        *((AFTER, "3", name) for name in (TUNED, FAIRALM, CALIBRATED)),
    ]
    measures = {key[3:] for key in measured[1]}
    named = [("accuracy", ""), ("accuracy", "light"), ("accuracy", "dark")]
    assert measures == {*named, ("dp_difference", ""), ("equalized_odds", "")}


def test_rows_are_what_the_pipeline_gives(measured, workspace, tmp_path, monkeypatch):
    """The oracle is the stages, with the same settings: nothing trained, and fine-tuned with FairALM."""
    for name in ("data", "models"):
        shutil.copytree(workspace / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    shared = {"evaluate.postprocess": [METHOD], "allocator": "uniform", "assign.uniform_bits": 3}
    rounded = {"quant_mode": "uniform", "quantize.uniform_bits": 3}
    fair = {"quant_mode": "fair_static_qat", "quantize.fairness_loss": "fairalm"}
    results = []
    for settings in (rounded, fair):
        config = parse_config(with_settings(params, {**shared, **settings}))
        for stage in (quantize, evaluate) if results else (baseline, importance, assign, quantize, evaluate):
            stage.main(config)
        results.append(read_json("metrics/evaluate.json"))
    plain, tuned = results
    mixed = plain["postprocess"][METHOD]
    for table, bits, mitigation, overall, groups, gaps in (
        (FULL, "32", NONE, plain["overall"]["before"], when(plain, "before"), plain["gap"]["before"]),
        (QUANTIZED, "3", NONE, plain["overall"]["after"], when(plain, "after"), plain["gap"]["after"]),
        (AFTER, "3", FAIRALM, tuned["overall"]["after"], when(tuned, "after"), tuned["gap"]["after"]),
        (FULL, "32", CALIBRATED, mixed["before"]["overall"], when(mixed["before"]), mixed["before"]["gap"]),
        (AFTER, "3", CALIBRATED, mixed["after"]["overall"], when(mixed["after"]), mixed["after"]["gap"]),
    ):
        values, start = measured[1], (table, bits, mitigation)
        assert values[*start, "accuracy", ""] == pytest.approx(overall, abs=2e-6)
        for name, value in groups.items():
            assert values[*start, "accuracy", name] == pytest.approx(value, abs=2e-6)
        for name in ("dp_difference", "equalized_odds"):
            assert values[*start, name, ""] == pytest.approx(gaps[name], abs=2e-6)


def when(metrics, key="accuracy"):
    return {name: row[key] for name, row in metrics["group"].items()}


def test_the_page_holds_three_tables(measured):
    text = (measured[0] / "poster.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("###")] == [
        f"### {TASK}: {table} (1 seed)" for table in (FULL, QUANTIZED, AFTER)
    ]


def row(seed, accuracy, mitigation=NONE):
    return Row(
        "task", seed, FULL, 32, mitigation, accuracy, {"dp_difference": 0.1, "equalized_odds": None}, {"a|b": 0.5}
    )


def test_tables_by_hand():
    text = poster.markdown([row(0, 0.8), row(1, 0.82), row(0, 0.7, FAIRALM)])
    assert text == (
        "### task: full precision (2 seeds)\n\n"
        "| mitigation | bits | accuracy % | a\\|b % | DP difference | EOdds difference |\n"
        "|:--|--:|--:|--:|--:|--:|\n"
        "| none | 32 | 81.0 ± 1.4 | 50.0 ± 0.0 | 10.0 ± 0.0 | – |\n"
        "| FairALM | 32 | 70.0 | 50.0 | 10.0 | – |\n"
    )
    lines = list(csv.reader(io.StringIO(poster.as_csv([row(3, 0.8)]))))
    assert lines[1:] == [
        ["task", "3", FULL, "32", NONE, "accuracy", "", "0.8"],
        ["task", "3", FULL, "32", NONE, "dp_difference", "", "0.1"],
        ["task", "3", FULL, "32", NONE, "equalized_odds", "", ""],
        ["task", "3", FULL, "32", NONE, "accuracy", "a|b", "0.5"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", "4", "4"], "--bits: got 4 4; allowed: each once, from 2 to 16"),
        (["--bits", "1"], "--bits: got 1; allowed: each once, from 2 to 16"),
        (["--set", "seed=1"], "--set: got 'seed=1'; allowed: a workspace of that seed (its classifier was trained "),
    ],
)
def test_mistakes_are_one_line(arguments, message, workspace, tmp_path, capsys):
    assert poster.main([str(workspace), *arguments, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
