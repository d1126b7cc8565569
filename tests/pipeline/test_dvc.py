"""The DVC commands of the README, as typed, on a small copy of the pipeline."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import yaml

from fairquant import artifacts

STAGES = ["prepare", "pretrain", "baseline", "importance", "assign", "quantize", "evaluate", "export", "report"]

pytestmark = pytest.mark.xdist_group("dvc")


def stages_run(output: str) -> list[str]:
    """Return the stages that dvc says it ran, in order."""
    return re.findall(r"Running stage '(\w+)'", output)


def group_names(path: Path) -> list[str]:
    return list(json.loads((path / "data/prepared/meta.json").read_text())["groups"])


def test_second_repro_has_nothing_to_do(reproduced):
    output = reproduced.run("dvc", "repro").stdout
    assert stages_run(output) == []
    assert "Data and pipelines are up to date" in output


def test_artifacts_of_every_stage_exist(reproduced):
    for stage in yaml.safe_load((reproduced.path / "dvc.yaml").read_text())["stages"].values():
        for kind in ("outs", "metrics", "plots"):
            for out in stage.get(kind, []):
                assert (reproduced.path / (out if isinstance(out, str) else next(iter(out)))).exists()


def test_reducer_reruns_assign_and_later_only(reproduced):
    output = reproduced.run("dvc", "exp", "run", "-n", "cvar", "-S", "reducer=cvar").stdout
    assert stages_run(output) == ["assign", "quantize", "evaluate", "export", "report"]
    diff = reproduced.run("dvc", "metrics", "diff", "--all", "HEAD").stdout
    plots = reproduced.run("dvc", "plots", "diff", "HEAD", "-o", "plots_diff").stdout
    page = (reproduced.path / "plots_diff/index.html").read_text()
    assert "plots_diff" in plots
    for name in group_names(reproduced.path):
        assert f"group.{name}." in diff
        assert json.dumps(name)[1:-1] in page
    reproduced.run("git", "checkout", "-q", ".")
    reproduced.run("dvc", "checkout")


def test_queued_sweep_finishes_four(reproduced):
    reproduced.run("dvc", "exp", "run", "--queue", "-S", "reducer=max,mean,cvar,balanced")
    reproduced.run("dvc", "queue", "start", "-j", "1")
    while "Running" in (status := reproduced.run("dvc", "queue", "status").stdout) or "Queued" in status:
        time.sleep(5)  # asking costs a second of a core that the runs need
    assert status.count("Success") == 4, status


def test_temporary_run_uses_its_own_code(reproduced):
    report = reproduced.path / "stages/report.py"
    original = report.read_text()
    report.write_text(original.replace("def main(", "print(__file__)\n\n\ndef main(", 1))
    output = reproduced.run("dvc", "exp", "run", "--temp", "-n", "temp").stdout
    report.write_text(original)
    assert stages_run(output) == ["report"]
    printed = re.search(r"^(/.*stages/report\.py)$", output, re.MULTILINE)
    assert printed is not None
    assert Path(printed.group(1)) != report
    assert ".dvc/tmp/exps" in printed.group(1)


def test_bits_are_those_asked_for(reproduced):
    metrics = artifacts.read_json(reproduced.path / "metrics/bits.json")
    assert metrics["avg_bits"]["by_parameter"] == pytest.approx(5.2, abs=0.1)
