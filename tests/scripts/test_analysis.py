"""An analysis end to end on a tiny classifier: phases, restarting, mitigation, mistakes."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from fairquant import plugins
from fairquant.allocate.info import ModelInfo
from fairquant.artifacts import read_json
from fairquant.config.load import parse_config
from fairquant.errors import UserError
from fairquant.predictions import Predictions, SplitPredictions
from fairquant.report.curves import read_rows
from scripts.analysis import __main__ as command_line
from scripts.analysis import baseline, methods
from scripts.analysis.mitigate import postprocessed
from scripts.analysis.points import Request
from scripts.analysis.session import KeepingSession, predictions_path
from scripts.curves.methods import METHODS as CURVES
from tests.report.curve_rows import row
from tests.scripts.test_curves import make_workspace, timeless

ROOT = Path(__file__).resolve().parents[2]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
INFO = ModelInfo(
    shapes={"conv": (7, 3, 3, 3), "fc": (3, 7)},
    kinds={"conv": "conv2d", "fc": "linear"},
    roles={"first": "conv", "last": "fc", "classifier": "fc"},
    rest=31,
    macs={"conv": 100, "fc": 21},
)


def run(*arguments: object) -> int:
    return command_line.main(["run", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


GRID = ("--methods", "uniform", "uniform_ft", "--bits", "4", "2", "--mitigate", "uniform_ft", "--mitigations", "gap")


@pytest.fixture(scope="module")
def measured(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("measured") / "out"
    assert run("--workspaces", workspace, "--out", out, *GRID) == 0
    return out


class TestMethods:
    def test_every_mode_and_calibration_of_ours_exists(self):
        for name, method in methods.METHODS.items():
            settings = methods.settings_of(name, INFO, 4, {})
            assert settings is not None and method.meaning
            mode = settings["quant_mode"]
            assert mode in plugins.names("mode"), f"{name}: {mode}"
            assert settings["quantize.fairness_loss"] == "none"

    def test_a_width_is_told(self):
        assert methods.settings_of("ptq_static", INFO, 3, {})["assign.uniform_bits"] == 3
        assert methods.settings_of("hybrid", INFO, 3, {})["quantize.hybrid.backbone_bits"] == 3
        assert methods.settings_of("optimal_max", INFO, 3, {})["budget.size_mb"] > 0
        assert methods.settings_of("uniform_ft", INFO, 3, {})["quant_mode"] == "fair_static_qat"

    def test_the_user_changes_defaults_and_not_what_makes_the_method(self):
        given = {"quantize.activations.bits": 4, "quantize.calibration.sampling": "worst_group"}
        settings = methods.settings_of("ptq_balanced", INFO, 3, given)
        assert settings["quantize.activations.bits"] == 4
        assert settings["quantize.calibration.sampling"] == "balanced"
        assert methods.settings_of("qat", INFO, 3, {})["quantize.activations.bits"] == 8
        assert methods.settings_of("qat", INFO, 3, given)["quantize.activations.bits"] == 4

    def test_losses_are_those_there_are(self):
        assert set(methods.losses()) == set(plugins.names("loss")) - {"none"}
        for loss in methods.losses():
            settings = methods.settings_of(f"qat+{loss}", INFO, 4, {})
            assert (settings["quantize.fairness_loss"], settings["quantize.fairness_weight"]) == (loss, 1)
            rest = {**settings, "quantize.fairness_loss": "none", "quantize.fairness_weight": 0}
            assert rest == methods.settings_of("qat", INFO, 4, {})
        given = {"quantize.fairness_weight": 0.5}
        assert methods.settings_of("qat+gap", INFO, 4, given)["quantize.fairness_weight"] == 0.5

    def test_those_of_the_curves_take_part(self):
        assert {"uniform", "uniform_ft", "ours_ft"} <= set(methods.allowed())
        for name, method in CURVES.items():
            assert (name in methods.allowed()) == (not method.only_tuned)


def test_rows_of_every_point(measured):
    rows = read_rows(measured / "analysis.csv")
    assert [(item.task, item.method, item.tuned, item.budget) for item in rows] == [
        ("test_resnet", name, name != "uniform", bits)
        for name in ("uniform", "uniform_ft", "uniform_ft+gap") for bits in (4.0, 2.0)
    ]  # fmt: skip
    assert "quantize.fairness_loss=gap" in rows[-1].settings
    assert rows[2].test_loss_change != rows[4].test_loss_change


def test_predictions_and_maps_are_kept(measured):
    for item in read_rows(measured / "analysis.csv"):
        place = (item.task, item.seed, item.method, item.budget)
        kept = Predictions.load(predictions_path(measured / "cache", place))
        right = kept["test"].predicted == kept["test"].labels
        for code, name in enumerate(kept.groups):
            assert right[kept["test"].groups == code].mean() == pytest.approx(item.test_group_after[name])
    assert (measured / "importance/test_resnet-s0.safetensors").exists()


def test_the_report_has_everything(measured):
    names = {path.name for path in (measured / "report").iterdir()}
    assert {"heat_4bit.png", "heat_2bit.png", "pareto_2d.png", "pareto_3d.png", "groups_test_resnet_2bit.png"} <= names
    assert {"sensitivity_test_resnet.png", "mcnemar.csv", "analysis.md", "analysis.tex"} <= names
    page = (measured / "report/analysis.md").read_text(encoding="utf-8")
    assert "### test_resnet, 2 bits, mitigated: uniform_ft" in page


def test_a_second_sitting_measures_what_is_missing(measured, workspace, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(measured, out)
    lines = (out / "analysis.csv").read_text().splitlines(keepends=True)
    (out / "analysis.csv").write_text("".join(lines[:5]))
    asked = []
    measure = KeepingSession.measure
    monkeypatch.setattr(KeepingSession, "measure", lambda self, point: asked.append(point.key) or measure(self, point))
    points = ("--phases", "compression", "mitigation")
    assert run("--workspaces", workspace, "--out", out, *GRID, *points) == 0
    assert [key[2] for key in asked] == ["uniform_ft+gap", "uniform_ft+gap"]
    assert timeless(read_rows(out / "analysis.csv")) == timeless(read_rows(measured / "analysis.csv"))
    asked.clear()
    assert run("--workspaces", workspace, "--out", out, *GRID, "--redo", "uniform", "--phases", "compression") == 0
    assert [key[2] for key in asked] == ["uniform", "uniform"]
    asked.clear()
    (out / "report/analysis.md").unlink()
    assert run("--out", out, *GRID, "--phases", "analysis") == 0 and asked == []
    assert (out / "report/analysis.md").exists()


def test_a_point_that_cannot_be_met_is_said_and_the_rest_goes_on(workspace, tmp_path, monkeypatch, capsys):
    def refuse(self, point):
        if point.key[4] == 4.0:
            raise UserError("budget.size_mb: got 1;\nallowed: 2 or more")
        raise KeyboardInterrupt

    monkeypatch.setattr(KeepingSession, "measure", refuse)
    assert run("--workspaces", workspace, "--out", tmp_path / "out", *GRID) == 130
    said = capsys.readouterr().err
    assert "uniform 4 bits untuned: FAILED, budget.size_mb: got 1; allowed: 2 or more" in said
    assert said.splitlines()[-1].startswith("stopped: finished points are in the csv")


class TestPostprocessing:
    def after(self):
        random = np.random.default_rng(0)
        parts = {}
        for split in ("val", "test"):
            groups, labels = np.arange(400) % 2, (np.arange(400) // 2) % 2
            strength = np.where(groups == 0, 2.0, 0.6)
            logit = strength * (2 * labels - 1) + random.normal(size=400) + 0.5 * groups
            parts[split] = SplitPredictions(
                np.stack([-logit, logit], axis=1).astype(np.float32), labels, groups, np.arange(400)
            )
        return Predictions(("no", "yes"), ("light", "dark"), parts)

    @pytest.mark.parametrize("name", plugins.names("postprocess"))
    def test_a_row(self, name):
        before, after = row(worst=0.7), self.after()
        made = postprocessed(name, before, after, parse_config(PARAMS))
        accuracies = made.test_group_after
        assert set(accuracies) == {"light", "dark"}
        assert made.test_worst_after == pytest.approx(min(accuracies.values()))
        assert accuracies[made.test_worst_group] == made.test_worst_after
        assert made.test_gap_after == pytest.approx(max(accuracies.values()) - min(accuracies.values()))
        assert (made.packed_mb, made.test_group_before) == (before.packed_mb, before.test_group_before)
        assert made.val_overall_after is None and made.test_loss_change == {} and made.harmed == ()

    @pytest.mark.parametrize("name", plugins.names("postprocess")[:1])
    def test_two_classes_only(self, name):
        parts = {
            split: replace(part, logits=np.pad(part.logits, ((0, 0), (0, 1))))
            for split, part in self.after().splits.items()
        }
        three = Predictions(("no", "yes", "maybe"), ("light", "dark"), parts)
        with pytest.raises(UserError, match="3 classes; allowed: two classes"):
            postprocessed(name, row(), three, parse_config(PARAMS))

    def test_it_needs_its_base(self, workspace, tmp_path, capsys):
        name = plugins.names("postprocess")[0]
        out = tmp_path / "out"
        options = ("--workspaces", workspace, "--out", out, "--methods", "uniform", "--bits", "4",
                   "--phases", "mitigation", "--mitigate", "uniform")  # fmt: skip
        assert run(*options, "--mitigations", name) == 0
        rows = read_rows(out / "analysis.csv")
        assert [item.method for item in rows] == ["uniform", f"uniform+{name}"]
        assert rows[1].packed_mb == rows[0].packed_mb
        assert shlex.split(rows[1].settings)[-1] == f'evaluate.postprocess=["{name}"]'
        assert run(*options, "--mitigations", name) == 0 and read_rows(out / "analysis.csv") == rows
        shutil.rmtree(out / "cache/predictions")
        assert run(*options, "--mitigations", name, "--redo", f"uniform+{name}") == 1
        assert f"FAILED, --mitigations: got {name} without a measured uniform" in capsys.readouterr().err


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder with a params.yaml for the digits, which need no files."""
    changes = {"data": {**PARAMS["data"], "name": "digits", "image_size": 16, "train_subset": 120, "test_subset": 60},
               "model": {**PARAMS["model"], "name": "test_resnet"}, "device": "cpu"}  # fmt: skip
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**PARAMS, **changes}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


SMALL = ("--name", "first", "--models", "test_resnet", "--seeds", "0", "1", "--debug", "--set",
         "evaluate.bootstrap.resamples=0", "importance.samples_per_group=8")  # fmt: skip


def test_all_phases_from_nothing(repository, monkeypatch, capsys):
    grid = ("--methods", "uniform", "--bits", "4", "--mitigations", "--phases")
    assert run(*SMALL, *grid, "baseline") == 0
    out = repository / "analysis/first"
    for seed in (0, 1):
        folder = out / f"workspaces/test_resnet-s{seed}"
        params = yaml.safe_load((folder / "params.yaml").read_text())
        assert (params["seed"], params["model"]["name"], params["debug"]) == (seed, "test_resnet", True)
        assert (folder / "data/prepared").resolve() == out / "data/prepared"
        assert read_json(folder / "metrics/pretrain.json")["epochs"]["run"] == 1
    assert read_rows(out / "analysis.csv") == []
    monkeypatch.setattr(baseline, "_stage", lambda *_: pytest.fail("it is trained"))
    assert run(*SMALL, *grid, "compression", "analysis") == 0
    rows = read_rows(out / "analysis.csv")
    assert [(item.task, item.seed, item.method) for item in rows] == [("test_resnet", s, "uniform") for s in (0, 1)]
    assert "| uniform | 2 |" in (out / "report/analysis.md").read_text(encoding="utf-8")
    assert run(*SMALL, "pretrain.epochs=2", *grid, "compression") == 2
    assert "with other settings" in capsys.readouterr().err.splitlines()[-1]


class TestMistakes:
    """One line on stderr and exit code 2."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--methods", "best"), "--methods: got 'best'; allowed: ptq_static | "),
            (("--methods", "qat", "qat"), "--methods: got qat qat; allowed: each value once"),
            (("--bits", "17"), "--bits: got 17; allowed: whole numbers from 1 to 16"),
            (("--bits", "4", "4"), "--bits: got 4 4; allowed: each value once"),
            (("--mitigations", "love"), "--mitigations: got 'love'; allowed: each once of "),
            (("--mitigate", "ptq_static", "--mitigations", "gap"), "--mitigate: got 'ptq_static' with the loss gap"),
            (("--reference", "best"), "--reference: got 'best'; allowed: ptq_static | "),
            (("--set", "seed=1"), "--set: got 'seed=1'; allowed: a workspace of that seed"),
            (("--name", "a b"), "--name: got 'a b'; allowed: letters, digits, _ and -"),
            (("--methods", "uniform", "--redo", "qat+best"), "--redo: got 'qat+best'; allowed: of uniform qat "),
            (("--methods", "uniform", "--set", "x.y=1"), "test_resnet, uniform, 8 bits: params.yaml: x: unknown key"),
        ],
    )  # fmt: skip
    def test_arguments(self, arguments, message, workspace, tmp_path, capsys):
        assert run("--workspaces", workspace, "--out", tmp_path / "out", *arguments) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {message}")
        assert not (tmp_path / "out/analysis.csv").exists()

    def test_workspaces(self, workspace, tmp_path, capsys):
        out = ("--out", tmp_path / "out")
        other = make_workspace(tmp_path / "other", seed=0)
        meta = other / "data/prepared/meta.json"
        assert run("--workspaces", tmp_path / "none", *out) == 2
        assert run("--workspaces", workspace, other, *out) == 2
        meta.write_text(meta.read_text().replace('"checksum": "', '"checksum": "0'))
        assert run("--workspaces", workspace, f"b={other}", *out) == 2
        assert run("--workspaces", workspace, "--debug", *out) == 2
        first, second, third, fourth = capsys.readouterr().err.splitlines()
        assert first.endswith("no folder; allowed: FOLDER or TASK=FOLDER")
        assert "both test_resnet with seed 0; allowed: one of each, or names for them (MODEL=FOLDER)" in second
        assert third.endswith("with other data; allowed: the same prepared data")
        assert (
            fourth == "error: --workspaces: got it with --data or --debug; allowed: those of the workspaces themselves"
        )

    def test_without_params(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert run("--models", "resnet18") == 2
        assert capsys.readouterr().err == "error: params.yaml: not found; run from the repository's folder\n"

    def test_models_are_not_set(self, repository, capsys):
        assert run("--set", "model.name=vgg11") == 2
        assert run("--models", "a", "a") == 2
        first, second = capsys.readouterr().err.splitlines()
        assert first == "error: --set: got 'model.name'; allowed: --models"
        assert second == "error: --models: got a a; allowed: each value once"

    def test_nothing_measured(self, tmp_path, capsys):
        assert run("--out", tmp_path, "--phases", "analysis") == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_names_follow_the_phases():
    request = Request(("uniform",), (4,), "qat", ("gap",))
    assert request.names == ["uniform", "qat", "qat+gap"]
    assert replace(request, phases=("compression",)).names == ["uniform"]
    assert replace(request, phases=("baseline", "analysis")).names == []


def test_layers_from_importance_maps(measured, tmp_path, capsys):
    maps = measured / "importance/test_resnet-s0.safetensors"
    assert command_line.main(["sensitivity", str(maps), "--out", str(tmp_path / "s")]) == 0
    assert (tmp_path / "s/sensitivity.png").stat().st_size > 5000
    lines = (tmp_path / "s/sensitivity.csv").read_text(encoding="utf-8").splitlines()
    shares = [float(line.split(",")[-2]) for line in lines[1:] if ",dark," in line]
    assert sum(shares) == pytest.approx(1.0)
    assert command_line.main(["sensitivity", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
