"""The comment on a pull request, on hand-made metrics in a real git repository."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fairquant.errors import ArtifactError
from scripts import pr_comment
from scripts.pr_comment import EXPORT, Measured, Results, comment, comparison, headline, verdict

PATH = "metrics/evaluate.json"
NAMES = {"female × <60": (40, 0.875), "a|b*": (20, 0.7), "male": (60, 0.8)}


def interval(value, half=0.04):
    return {"after": {"low": value - half, "high": value + half}}


def metrics():
    return {
        "overall": {"before": 0.84, "after": 0.81},
        "worst_group": {"before": 0.8, "after": 0.7},
        "gap": {"before": {"max_minus_min": 0.1}, "after": {"max_minus_min": 0.175}},
        "group": {name: {"n": n, "before": 0.85, "after": after} for name, (n, after) in NAMES.items()},
        "interval": {
            "overall": interval(0.81),
            "worst_group": interval(0.7),
            "gap": {"max_minus_min": interval(0.175)},
            "group": {name: interval(after) for name, (_, after) in NAMES.items()},
        },
        "harm": {name: {"harmed": name == "a|b*"} for name in NAMES},
        "cost": {"packed_mb": 1.25, "avg_bits": {"by_parameter": 4.8}},
    }


def export(onnx_mb=1.5, **parts):
    return {"size": {"packed_mb": 1.251, "onnx_mb": onnx_mb, "computed_mb": 1.25, "fp32_mb": 7.5}, **parts}


def changed(**after):
    """Metrics in which some groups' accuracies, and the overall's and gap's, are other ones."""
    result = copy.deepcopy(metrics())
    for name, value in after.items():
        if name in result["group"]:
            result["group"][name]["after"] = value
        elif name == "gap":
            result["gap"]["after"]["max_minus_min"] = value
        else:
            result[name]["after"] = value
    return result


def results(values):
    return Results.of(values, name=PATH)


def notes(cells):
    return {row[0]: row[-1] for row in cells[1:]}


ROOT = Path(__file__).resolve().parents[2]


class TestVerdict:
    BASE = Measured(0.8, {"low": 0.75, "high": 0.85}, n=100)

    @pytest.mark.parametrize(
        ("value", "word"),
        [(0.74, "worse"), (0.75, ""), (0.8, ""), (0.85, ""), (0.86, "better"), (None, "")],
    )
    def test_outside_the_base_s_interval(self, value, word):
        assert verdict(self.BASE, Measured(value, n=100)) == word

    def test_a_larger_gap_is_worse(self):
        assert verdict(self.BASE, Measured(0.9, n=100), smaller_is_better=True) == "worse"
        assert verdict(self.BASE, Measured(0.7, n=100), smaller_is_better=True) == "better"

    def test_other_samples_have_no_verdict(self):
        assert verdict(self.BASE, Measured(0.1, n=99)) == "other test set"

    @pytest.mark.parametrize("ends", [None, {"low": None, "high": None}])
    def test_no_interval_no_verdict(self, ends):
        assert verdict(Measured(0.8, ends, n=100), Measured(0.1, n=100)) == ""


def test_table_by_hand():
    cells = comparison(results(metrics()), results(changed(male=0.7, **{"female × <60": 0.95}, overall=0.75, gap=0.25)))
    assert cells == [
        ("quantized model", "n", "base %", "this change %", "difference", "note"),
        ("female × <60", "40", "87.5", "95.0 [83.5, 91.5]", "+7.5", "better"),
        ("a|b*", "20", "70.0", "70.0 [66.0, 74.0]", "+0.0", "harmed"),
        ("male", "60", "80.0", "70.0 [76.0, 84.0]", "-10.0", "worse"),
        ("overall", "120", "81.0", "75.0 [77.0, 85.0]", "-6.0", "worse"),
        ("worst group", "", "70.0", "70.0 [66.0, 74.0]", "+0.0", ""),
        ("accuracy gap, max − min", "", "17.5", "25.0 [13.5, 21.5]", "+7.5", "worse"),
        ("packed MB", "", "1.250", "1.250", "+0.000", ""),
        ("bits per weight", "", "4.800", "4.800", "+0.000", ""),
    ]


def test_headlines_name_harmed_and_worse_groups():
    base, head = results(metrics()), results(changed(**{"a|b*": 0.5}))
    assert headline(base, head) == [
        "Harmed by the compression (1 of 3 groups): a|b*.",
        "Worse than at the base, beyond the base's interval (1): a|b*.",
    ]
    assert notes(comparison(base, head))["a|b*"] == "harmed, worse"


def test_headline_without_a_worse_group():
    base = results(metrics())
    assert headline(base, results(changed(male=0.81)))[1] == (
        "No group is worse than at the base beyond the base's interval."
    )
    assert headline(base, base)[1] == "The committed results are those of the base."


def test_a_base_without_intervals_gives_no_verdict():
    old = metrics()
    del old["interval"], old["harm"], old["gap"]
    head = results(changed(male=0.1))
    assert headline(results(old), head)[1] == (
        "The base has no intervals of these groups: no group is called worse or better."
    )
    assert set(notes(comparison(results(old), head)).values()) == {"", "harmed"}


def test_a_head_without_tests_says_so():
    head = metrics()
    del head["interval"], head["harm"]
    assert headline(None, results(head)) == ["Harm per group was not tested in this change."]
    assert "[" not in str(comparison(None, results(head))[1])[1:]


def test_another_test_set_is_said_and_nothing_else():
    head = changed(male=0.1, overall=0.1, gap=0.9)
    head["group"]["male"]["n"] = 61
    cells = comparison(results(metrics()), results(head))
    assert cells[3] == ("male", "60 → 61", "80.0", "10.0 [76.0, 84.0]", "-70.0", "other test set")
    words = notes(cells)
    assert [words[name] for name in ("overall", "worst group", "accuracy gap, max − min")] == ["other test set"] * 3


def test_other_groups_are_stated():
    base = metrics()
    base["group"]["gone"] = base["group"].pop("male")
    cells = comparison(results(base), results(metrics()))
    assert cells[3] == ("male", "60", "–", "80.0 [76.0, 84.0]", "–", "only in this change")
    assert cells[4] == ("gone", "60", "80.0", "–", "–", "only at the base")


def test_undefined_accuracies_are_dashes():
    head = metrics()
    head["group"]["male"] |= {"n": 60, "after": None}
    assert comparison(results(metrics()), results(head))[3] == ("male", "60", "80.0", "–", "–", "")


def test_names_are_escaped_and_gates_are_shown():
    head = metrics()
    head["gates"] = {"passed": False, "gate": {"size_mb": {"value": 1.25, "limit": 1, "passed": False}}}
    exported = {"gates": {"gate": {"disagreement": {"value": 0.0, "limit": 0.01, "passed": True}}}}
    text = comment(results(metrics()), results(head), export(**exported))
    assert r"| female × \<60 | 40 | 87.5 | 87.5 \[83.5, 91.5\] | +0.0 |  |" in text
    assert r"| a\|b\* | 20 | 70.0 | 70.0 \[66.0, 74.0\] | +0.0 | harmed |" in text
    assert r"Harmed by the compression (1 of 3 groups): a\|b\*." in text
    assert "| size\\_mb | 1.25 | 1 | FAILED |\n| export.disagreement | 0 | 0.01 | passed |" in text
    assert "Exported files. No exported file was run on the test split" in text
    assert "the two runs are not paired" in text
    assert text == comment(results(metrics()), results(head), export(**exported))


@pytest.mark.parametrize("key", ["overall", "worst_group", "group", "cost"])
def test_a_file_without_a_key_is_named(key):
    broken = metrics()
    del broken[key]
    with pytest.raises(ArtifactError) as error:
        results(broken)
    assert str(error.value) == (f"{PATH}: got a file without a usable {key!r}; allowed: what the evaluate stage writes")


@pytest.mark.parametrize("broken", [[], {"group": 3}, {"group": {"a": {"n": "x", "after": 1}}}, {"interval": []}])
def test_a_file_of_another_shape_is_refused(broken):
    with pytest.raises(ArtifactError, match=rf"{PATH}: got a file without a usable "):
        results(broken)


def test_sizes_of_exported_files_stand_beside_those_of_the_base():
    base = results(metrics()).with_files(export(1.25), name=EXPORT)
    head = results(metrics()).with_files(export(1.5), name=EXPORT)
    assert comparison(base, head)[-2:] == [
        ("packed file, MB", "", "1.251", "1.251", "+0.000", ""),
        ("ONNX file, MB", "", "1.250", "1.500", "+0.250", ""),
    ]
    assert comparison(results(metrics()), head)[-1] == ("ONNX file, MB", "", "–", "1.500", "–", "")


@pytest.mark.parametrize("broken", [{}, {"size": []}, {"size": {"onnx_mb": "x"}}])
def test_an_export_of_another_shape_is_refused(broken):
    with pytest.raises(
        ArtifactError, match=rf"^{EXPORT}: got a file without a usable .*; allowed: what the export stage"
    ):
        results(metrics()).with_files(broken, name=EXPORT)


class TestCommand:
    """The command line, in a repository with one commit."""

    def git(self, folder, *arguments):
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)

    @pytest.fixture
    def repository(self, tmp_path):
        self.git(tmp_path, "init", "-q", "-b", "main")
        (tmp_path / "metrics").mkdir()
        (tmp_path / PATH).write_text(json.dumps(metrics(), ensure_ascii=False), encoding="utf-8")
        (tmp_path / EXPORT).write_text(json.dumps(export()), encoding="utf-8")
        return tmp_path

    def commit(self, folder):
        self.git(folder, "add", "-A")
        self.git(folder, "commit", "-qm", "base", "--allow-empty")

    def run(self, capsys, folder, base="main"):
        code = pr_comment.main([base, "--root", str(folder)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    def test_any_terminal(self, repository):
        self.commit(repository)
        environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "scripts.pr_comment", "main", "--root", str(repository)]
        done = subprocess.run(command, env=environment, capture_output=True, check=True)
        assert done.stdout.startswith(b"### Quantized model per group") and done.stderr == b""

    def test_base_against_workspace(self, repository, capsys):
        self.commit(repository)
        (repository / PATH).write_text(json.dumps(changed(male=0.7)), encoding="utf-8")
        code, out, err = self.run(capsys, repository)
        assert (code, err) == (0, "")
        assert out.startswith("### Quantized model per group: base against this change\n\n")
        assert r"| male | 60 | 80.0 | 70.0 \[76.0, 84.0\] | -10.0 | worse |" in out
        assert r"female × \<60" in out

    def test_a_base_without_the_file(self, repository, capsys):
        (repository / ".gitignore").write_text("metrics/\n")
        self.commit(repository)
        code, out, _ = self.run(capsys, repository)
        assert code == 0
        assert "\n\nThe base has no metrics/evaluate.json: there is nothing to compare with.\n\n" in out
        assert r"| male | 60 | – | 80.0 \[76.0, 84.0\] | – |  |" in out

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("{", "The base's metrics are not valid JSON ("),
            ("{}", "The base cannot be compared with. metrics/evaluate.json: got a file without a usable 'group'"),
        ],
    )
    def test_a_broken_base_is_stated(self, repository, capsys, text, reason):
        (repository / PATH).write_text(text)
        self.commit(repository)
        (repository / PATH).write_text(json.dumps(metrics()))
        code, out, _ = self.run(capsys, repository)
        assert code == 0
        assert reason in out.replace("\\", "")

    @pytest.mark.parametrize("base", ["nowhere", "--all", "main:metrics"])
    def test_an_unknown_base_is_one_line(self, repository, capsys, base):
        self.commit(repository)
        code = pr_comment.main(["--root", str(repository), "--", base])
        assert code == 2
        assert capsys.readouterr().err == (
            f"error: base: got {base!r}; allowed: a commit of this repository (fetch it first: git fetch)\n"
        )

    def test_a_workspace_without_metrics_is_one_line(self, repository, capsys):
        self.commit(repository)
        (repository / PATH).unlink()
        code, out, err = self.run(capsys, repository)
        assert (code, out) == (2, "")
        assert err == f"error: {repository / PATH}: not found; run the stage that writes it (dvc repro)\n"
        (repository / EXPORT).unlink()
        assert str(repository / EXPORT) in self.run(capsys, repository)[2]
