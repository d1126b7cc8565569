"""Tests over seeds and over samples, and everything an analysis writes."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from fairquant.errors import ArtifactError
from fairquant.predictions import Predictions, SplitPredictions
from fairquant.report.analysis import by_model
from fairquant.report.analysis_tests import as_evaluate, discordance_table, discordances, suites
from fairquant.report.analysis_write import heat_table, write_analysis
from fairquant.report.suite import compare, measures
from tests.report.curve_rows import row
from tests.report.test_analysis_plots import MAPS

WORST = {"ptq_static": (0.70, 0.72, 0.74), "qat": (0.78, 0.79, 0.83), "qat+gap": (0.79, 0.79, 0.85)}
ROWS = [
    row(method, 4.0, seed, task="resnet18", worst=worst, tuned=method != "ptq_static")
    for method, values in WORST.items()
    for seed, worst in enumerate(values)
]
ORDER = ("ptq_static", "qat")


def predictions(right, groups=(0, 0, 0, 0, 1, 1, 1, 1)):
    """Eight samples of class 0; those of ``right`` are predicted as such."""
    members = np.array(groups)
    logits = np.array([[1.0, 0.0] if good else [0.0, 1.0] for good in right], np.float32)
    part = SplitPredictions(logits, np.zeros(len(members), np.int64), members, np.arange(len(members)))
    return Predictions(("no", "yes"), ("light", "dark"), {"test": part})


def test_rows_are_what_suites_read():
    made = as_evaluate(row(worst=0.7, harmed=("dark",)))
    for measure in measures(next(iter(suites(by_model(ROWS, ORDER), reference="qat").values()))):
        assert measure.key == "eodd" or measure.read(made) is not None, measure.key
    assert made["group"]["dark"] == {"before": 0.8, "after": 0.7, "change": pytest.approx(-0.1)}
    assert made["harmed_groups"] == 1
    assert made["cost"]["ratio"] == pytest.approx(16.0)


def test_compression_and_mitigation_have_tests_of_their_own():
    found = suites(by_model(ROWS, ORDER), reference="ptq_static")
    assert {place: suite.methods for place, suite in found.items()} == {
        ("resnet18", 4.0, "compression"): ("ptq_static", "qat"),
        ("resnet18", 4.0, "qat+"): ("qat", "qat+gap"),
    }
    [test] = [c for c in compare(found["resnet18", 4.0, "qat+"]) if c.measure == "worst_group_accuracy"]
    oracle = stats.ttest_rel(WORST["qat+gap"], WORST["qat"])
    assert (test.method, test.n) == ("qat+gap", 3)
    assert (test.t, test.p) == pytest.approx((oracle.statistic, oracle.pvalue))


def test_samples_by_hand():
    reference = predictions([1, 1, 1, 1, 1, 1, 1, 1])
    found = discordances(
        {
            ("vit", 0, "ptq_static", 4.0): reference,
            ("vit", 0, "qat", 4.0): predictions([0, 1, 1, 1, 0, 0, 0, 0]),
            ("vit", 0, "qat+gap", 4.0): predictions([1, 1, 1, 1, 0, 0, 0, 0]),
            ("vit", 1, "qat", 4.0): reference,
        },
        reference="ptq_static",
    )
    assert [(d.method, d.reference, d.group, d.n, d.lost, d.won) for d in found] == [
        ("qat", "ptq_static", "light", 4, 1, 0),
        ("qat", "ptq_static", "dark", 4, 4, 0),
        ("qat+gap", "qat", "light", 4, 0, 1),  # what is mitigated is held against the same without
        ("qat+gap", "qat", "dark", 4, 0, 0),
    ]
    assert [d.p for d in found] == [1.0, 0.125, 1.0, 1.0]  # 2 / 2^4
    assert [d.p_holm for d in found] == [1.0, 0.5, 1.0, 1.0]  # times four
    assert discordance_table(found, level=0.6) == [
        ("method", "vit, 4 bits"),
        ("qat", "1 worse, 0 better of 2 (p 0.500)"),
        ("qat+gap", "0 worse, 0 better of 2 (p 1.000)"),
    ]


def test_other_samples_are_no_pairs():
    other = predictions([1] * 8, groups=(1, 0, 0, 0, 1, 1, 1, 1))
    points = {("vit", 0, "a", 4.0): predictions([1] * 8), ("vit", 0, "b", 4.0): other}
    with pytest.raises(ArtifactError, match="samples whose groups differ; allowed: the same samples"):
        discordances(points, reference="a")


def test_the_table_behind_the_heat_map():
    assert heat_table(by_model(ROWS, ORDER), 4.0) == [
        ("method", "overall accuracy, resnet18", "worst group’s accuracy, resnet18", "gap max − min, resnet18"),
        ("full precision", "90.0", "80.0", "15.0"),
        ("ptq_static", "82.0", "72.0", "23.0"),
        ("qat", "90.0", "80.0", "15.0"),
        ("qat+gap", "91.0", "81.0", "14.0"),
    ]


def write(folder, rows=ROWS, **changes):
    points = {(r.task, r.seed, r.method, r.budget): predictions([1] * 8) for r in rows}
    options = {"maps": [("resnet18", MAPS)], "predictions": points, **changes}
    write_analysis(rows, folder, order=ORDER, reference="ptq_static", **options)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_everything_is_written_with_equal_bytes(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert first == second
    assert sorted(first) == [
        "analysis.md", "analysis.tex", "groups_resnet18_4bit.png", "heat.csv", "heat_4bit.png", "mcnemar.csv",
        "pareto.csv", "pareto_2d.png", "pareto_3d.png", "sensitivity.csv", "sensitivity_resnet18.png", "tests.csv",
    ]  # fmt: skip
    for name in first:
        if name.endswith(".png"):
            with Image.open(tmp_path / "a" / name) as image:
                assert min(image.size) > 180
    page = first["analysis.md"].decode()
    assert "## 4 bits" in page and "### resnet18, 4 bits, mitigated: qat" in page
    assert "| qat+gap | 91.0 | 81.0 | 14.0 |" in page
    assert "Mean difference to ptq_static in points" in page
    assert "(pareto_3d.png)" in page and "(sensitivity_resnet18.png)" in page
    assert "0 worse, 0 better of 6 (p 1.000)" in page  # two groups, three seeds
    tex = first["analysis.tex"].decode()
    assert r"qat+gap & 91.0 & 81.0 & 14.0 \\" in tex
    assert r"\label{tab:tests-resnet18-4_0-compression}" in tex and r"\label{tab:samples}" in tex
    tests = list(csv.DictReader(first["tests.csv"].decode().splitlines()))
    assert {(line["method"], line["reference"]) for line in tests} == {("qat", "ptq_static"), ("qat+gap", "qat")}


def test_without_maps_and_predictions(tmp_path):
    found = write(tmp_path, ROWS[:1], maps=(), predictions=None)
    assert not {"mcnemar.csv", "sensitivity.csv"} & set(found)
    assert found["tests.csv"].decode() == "model,bits,measure,method,reference,n,mean_difference,t,p,p_holm\n"
    assert "Tests over samples" not in found["analysis.md"].decode()


def test_names_may_hold_any_sign(tmp_path):
    rows = [replace(ROWS[0], task="hf/vit.tiny & co")]
    found = write(tmp_path, rows, maps=())
    assert "groups_hf_vit_tiny_co_4bit.png" in found
    assert r"hf/vit.tiny \& co" in found["analysis.tex"].decode()
