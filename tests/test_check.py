"""``python -m fairquant.check``: exit codes, what it prints, and records it does not accept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairquant import check
from fairquant.config.export import ExportGatesSection
from fairquant.config.schema import GatesSection
from fairquant.evaluate.gates import check_gates, limits
from tests.report.conftest import SMALLEST_EXPORT, export_metrics, full_metrics

ROOT = Path(__file__).resolve().parents[1]


def record(gates: dict[str, Any]) -> dict[str, Any]:
    metrics = full_metrics()
    for row in metrics["group"].values():
        row["counted"] = True
    metrics["gates"] = check_gates(metrics, GatesSection(**gates))
    return metrics


def exported(value: float | None = 0.025, **gates: float | None) -> dict[str, Any]:
    """The record of the export stage with every gate of ``gates`` at ``value``."""
    found = {
        name: {"value": value, "limit": limit, "passed": value is not None and value <= limit}
        for name, limit in limits(ExportGatesSection(**gates)).items()
    }
    return export_metrics() | {"gates": {"passed": all(gate["passed"] for gate in found.values()), "gate": found}}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes params.yaml and the records of a run into the working folder."""

    def write_files(
        gates: dict[str, Any], metrics: Any, export: Any = SMALLEST_EXPORT, export_gates: dict[str, Any] | None = None
    ) -> None:
        section = {"gates": export_gates or {"disagreement": None}}
        Path("params.yaml").write_text(yaml.safe_dump({"gates": gates, "export": section}), encoding="utf-8")
        Path("metrics/evaluate.json").write_text(json.dumps(metrics), encoding="utf-8")
        Path("metrics/export.json").write_text(json.dumps(export), encoding="utf-8")

    monkeypatch.chdir(tmp_path)
    Path("metrics").mkdir()
    return write_files


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = check.main(arguments)
    done = capsys.readouterr()
    return code, done.out, done.err


def test_passed(write, capsys):
    gates = {"overall_drop": 0.03, "size_mb": 1.25}
    write(gates, record(gates))
    code, out, err = run(capsys)
    assert (code, err) == (0, "")
    assert "female × ≥60 (worst after)" in out
    assert "Harmed by the compression (1 of 3 groups): female × ≥60." in out
    assert "overall_drop" in out
    assert out.endswith("Passed: 2 of 2 gates.\n")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_any_terminal(write, encoding):
    gates = {"overall_drop": 0.03}
    write(gates, record(gates))
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "fairquant.check"], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u2212" in done.stdout and done.stdout.endswith(b"Passed: 1 of 1 gates.\n")


@pytest.mark.parametrize(("limit", "code"), [(0.03, 0), (0.0, 1)])
def test_a_reader_that_has_seen_enough_does_not_change_the_verdict(write, limit, code):
    write({"overall_drop": limit}, record({"overall_drop": limit}))
    command = f"{sys.executable} -m fairquant.check | true; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (code, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_output_that_is_full_proves_nothing(write):
    gates = {"overall_drop": 0.03}
    write(gates, record(gates))
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fairquant.check"], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=full,
            stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: No space left on device; free some and run dvc repro again\n"


def test_failed(write, capsys):
    gates = {"overall_drop": 0.03, "worst_group_drop": 0.05, "harmed_groups": 0}
    write(gates, record(gates))
    code, out, err = run(capsys)
    assert (code, err) == (1, "")
    (line,) = (line.split() for line in out.splitlines() if line.startswith("worst_group_drop"))
    assert line == ["worst_group_drop", "0.1", "0.05", "FAILED"]
    assert out.endswith("FAILED: 2 of 3 gates (worst_group_drop, harmed_groups).\n")


@pytest.mark.parametrize("old", [record({}), {k: v for k, v in record({}).items() if k != "gates"}])
def test_without_gates_it_says_so(write, capsys, old):
    write({"gap": None}, old)
    code, out, err = run(capsys)
    assert (code, err) == (0, "")
    assert "female × ≥60 (worst after)" in out
    assert "No exported file was run on the test split" in out
    assert out.endswith("No gates are set (params.yaml, sections gates and export.gates).\n")


@pytest.mark.parametrize(
    ("recorded", "now", "message"),
    [
        ({"gap": 0.5}, {"gap": 0.1}, "gates.gap: got a record of limit 0.5; allowed: limit 0.1"),
        ({}, {"gap": 0.1}, "gates.gap: got a record of no limit; allowed: limit 0.1"),
        ({"size_mb": 2.0}, {}, "gates.size_mb: got a record of limit 2.0; allowed: no limit"),
    ],
)
def test_a_record_of_other_limits_is_refused(write, capsys, recorded, now, message):
    write(now, record(recorded))
    assert run(capsys) == (2, "", f"error: metrics/evaluate.json: {message}, as in params.yaml (dvc repro)\n")


@pytest.mark.parametrize("passed", [True, False, None, 1])
def test_a_verdict_that_value_and_limit_contradict_is_refused(write, capsys, passed):
    gates = {"worst_group_drop": 0.05}
    metrics = record(gates)
    assert metrics["gates"]["gate"]["worst_group_drop"] == {"value": 0.1, "limit": 0.05, "passed": False}
    metrics["gates"]["gate"]["worst_group_drop"]["passed"] = passed
    write(gates, metrics)
    code, out, err = run(capsys)
    if passed is False:
        assert code == 1
    else:
        text = f"gates.worst_group_drop: got passed {passed!r} for value 0.1 and limit 0.05; allowed: what the evaluate"
        assert (code, out, err) == (2, "", f"error: metrics/evaluate.json: {text} stage writes (dvc repro)\n")


def test_limits_are_compared_as_they_are_recorded(write, capsys):
    gates = {"gap": 0.71234567}
    write(gates, json.loads(json.dumps(record(gates))))
    assert run(capsys)[0] == 0


@pytest.mark.parametrize("broken", [{}, {"group": 3}, {"gates": []}, {"gates": {"gate": {"gap": 1}}}])
def test_a_record_that_does_not_fit_is_refused(write, capsys, broken):
    write({}, broken)
    code, out, err = run(capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: metrics/evaluate.json: got a record that does not fit (")
    assert err.endswith("; allowed: what the evaluate stage writes (dvc repro)\n")


def test_gates_of_the_export_count(write, capsys):
    gates, export_gates = {"overall_drop": 0.03}, {"disagreement": 0.03, "logit_difference": 0.01}
    write(gates, record(gates), exported(0.025, **export_gates), export_gates)
    code, out, err = run(capsys)
    assert (code, err) == (1, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["disagreement", "0.025", "0.03", "passed"] in lines
    assert ["logit_difference", "0.025", "0.01", "FAILED"] in lines
    assert "Exported files, test accuracy:" in out
    assert ["male|$x_1$", "60", "80.0", "80.0", "78.8", "76.0"] in lines
    assert out.endswith("FAILED: 1 of 3 gates (export.logit_difference).\n")
    assert max(len(line) for line in out.splitlines()) <= 120


def test_gates_of_both_stages_passed(write, capsys):
    gates, export_gates = {"overall_drop": 0.03}, {"disagreement": 0.03}
    write(gates, record(gates), exported(0.025, **export_gates), export_gates)
    code, out, err = run(capsys)
    assert (code, err) == (0, "")
    assert out.endswith("Passed: 2 of 2 gates.\n")


def test_an_undefined_value_of_the_export_fails(write, capsys):
    write({}, record({}), exported(None, disagreement=0.01), {"disagreement": 0.01})
    code, out, _ = run(capsys)
    assert code == 1
    assert out.endswith("FAILED: 1 of 1 gates (export.disagreement).\n")


@pytest.mark.parametrize(
    ("recorded", "now", "message"),
    [
        ({"disagreement": 0.03}, {"disagreement": 0.01}, "got a record of limit 0.03; allowed: limit 0.01"),
        ({"disagreement": None}, {"disagreement": 0.01}, "got a record of no limit; allowed: limit 0.01"),
        ({"disagreement": 0.03}, {"disagreement": None}, "got a record of limit 0.03; allowed: no limit"),
    ],
)
def test_an_export_of_other_limits_is_refused(write, capsys, recorded, now, message):
    write({}, record({}), exported(**recorded), now)
    line = f"error: metrics/export.json: export.gates.disagreement: {message}, as in params.yaml (dvc repro)\n"
    assert run(capsys) == (2, "", line)


def test_an_export_whose_verdict_was_written_by_hand_is_refused(write, capsys):
    export = exported(0.025, disagreement=0.01)
    export["gates"]["gate"]["disagreement"]["passed"] = True
    write({}, record({}), export, {"disagreement": 0.01})
    text = "export.gates.disagreement: got passed True for value 0.025 and limit 0.01; allowed: what the export stage"
    assert run(capsys) == (2, "", f"error: metrics/export.json: {text} writes (dvc repro)\n")


@pytest.mark.parametrize("broken", [{"gates": []}, {"parity": {"onnxruntime": {}}}, {"parity": {"onnxruntime": 3}}])
def test_an_export_that_does_not_fit_is_refused(write, capsys, broken):
    write({}, record({}), broken)
    code, out, err = run(capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: metrics/export.json: got a record that does not fit (")
    assert err.endswith("; allowed: what the export stage writes (dvc repro)\n")


def test_a_run_without_an_export_is_one_line(write, capsys):
    write({}, record({}))
    Path("metrics/export.json").unlink()
    line = "error: metrics/export.json: not found; run the stage that writes it (dvc repro)\n"
    assert run(capsys) == (2, "", line)


def test_files_may_stand_elsewhere(write, capsys, tmp_path):
    write({"gap": 1}, record({"gap": 1}))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("params.yaml", "metrics/evaluate.json", "metrics/export.json"):
        (tmp_path / name).rename(elsewhere / Path(name).name)
    files = ("--metrics", "elsewhere/evaluate.json", "--params", "elsewhere/params.yaml")
    assert run(capsys, *files, "--export", "elsewhere/export.json")[0] == 0
    line = "error: params.yaml: not found; run from the folder that holds params.yaml\n"
    assert run(capsys) == (2, "", line)


def test_no_record_is_one_line(write, capsys):
    write({}, {})
    Path("metrics/evaluate.json").unlink()
    line = "error: metrics/evaluate.json: not found; run the stage that writes it (dvc repro)\n"
    assert run(capsys) == (2, "", line)


def test_as_a_program_without_torch(write, tmp_path):
    gates = {"overall_drop": 0.01}
    write(gates, record(gates))
    (tmp_path / "blocker").mkdir()
    (tmp_path / "blocker/sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    paths = os.pathsep.join([str(tmp_path / "blocker"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "fairquant.check"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.endswith("FAILED: 1 of 1 gates (overall_drop).\n")
