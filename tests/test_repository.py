"""Files beside the code: lock files, workflows, what must never stand in a committed file."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from scripts import check_requirements, uv_env

ROOT = Path(__file__).resolve().parents[1]
HOSTS = re.compile("|".join(["files" + r"\.pythonhosted", r"pypi\.org" + "/simple", r"registry\." + "npmjs"]))
FOLDERS = "|".join(["work", "farm", "root", "tmp/bash_jobs"])
MACHINE = re.compile(rf"(^|[^A-Za-z0-9_./-])/({FOLDERS})/", re.MULTILINE)


def committed() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    names = listing.stdout.decode().split("\0") if listing.returncode == 0 else []
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    found = {}
    for path in committed():
        data = path.read_bytes()
        if b"\0" not in data[:1000]:
            found[str(path.relative_to(ROOT))] = data.decode("utf-8", errors="replace")
    if not found:
        pytest.skip("not a git checkout")
    return found


def test_no_file_names_an_index_host(texts):
    assert [name for name, text in texts.items() if HOSTS.search(text)] == []


def test_no_file_names_a_path_of_a_machine(texts):
    assert [name for name, text in texts.items() if MACHINE.search(text)] == []


def test_committed_files_are_small():
    assert [str(path) for path in committed() if path.stat().st_size > 2_000_000] == []


class TestRequirements:
    """``scripts.check_requirements`` accepts the committed files and finds every kind of mistake."""

    PROJECT = '[project]\ndependencies = ["numpy>=2"]\n[project.optional-dependencies]\ndev = ["ruff"]\n'

    def problems(self, run="numpy==2.4\n", dev="numpy==2.4\nruff==0.17\n"):
        return check_requirements.problems(self.PROJECT, run, dev)

    def test_the_committed_files_are_right(self, capsys):
        assert check_requirements.main() == 0
        assert capsys.readouterr().err == ""

    def test_good(self):
        assert self.problems() == []

    @pytest.mark.parametrize(
        "line",
        ["--index-url https://example.org", "x @ file:///x.whl", "https://example.org/x.whl", "x>=1", "-r other.txt"],
    )
    def test_foreign_lines(self, line):
        found = self.problems(run=f"numpy==2.4\n{line}\n")
        assert found == [f"requirements.txt:2: got {line!r}; allowed: name==version, no URL, no option"]

    def test_missing_pin(self):
        assert self.problems(dev="numpy==2.4\n") == ["requirements-dev.txt: ruff is not pinned; run: make lock"]

    def test_pin_outside_the_range(self):
        found = self.problems(run="numpy==1.9\n", dev="numpy==1.9\nruff==1\n")
        assert found[0] == "requirements.txt: numpy: got 1.9; allowed: >=2"

    def test_files_that_disagree(self):
        assert (
            "requirements.txt has {'': '2.4'}, requirements-dev.txt {'': '2.5'}"
            in self.problems(dev="numpy==2.5\nruff==1\n")[0]
        )


def test_uv_is_told_what_pip_is_told():
    listing = (
        "global.extra-index-url='\\nfile:///a\\nfile:///b'\nglobal.index-url='file:///weak'\n"
        ":env:.index-url='file:///strong'\nfreeze.timeout='9'\nglobal.no-index='true'\nglobal.unknown='x'\n"
    )
    assert uv_env.exports(uv_env.parse(listing), {"UV_NO_INDEX": "0"}) == {
        "UV_DEFAULT_INDEX": "file:///strong",
        "UV_INDEX": "file:///a file:///b",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }


def test_uv_env_prints_shell_exports(monkeypatch, capsys):
    done = subprocess.CompletedProcess([], 0, stdout="global.find-links='a b'\n")
    monkeypatch.setattr(uv_env.subprocess, "run", lambda *_, **__: done)
    monkeypatch.delenv("UV_FIND_LINKS", raising=False)
    uv_env.main()
    assert capsys.readouterr().out == "export UV_FIND_LINKS='a b'\n"


class TestWorkflows:
    """What the linters do not know: pins, credentials and who may write."""

    @pytest.fixture(params=sorted(ROOT.glob(".github/workflows/*.yml")), ids=lambda path: path.name)
    def workflow(self, request):
        return yaml.safe_load(request.param.read_text())

    def test_actions_are_pinned_to_commits(self, workflow):
        for job in workflow["jobs"].values():
            for step in job["steps"]:
                assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step.get("uses", "a/b@" + "0" * 40))

    def test_checkouts_keep_no_credentials(self, workflow):
        for job in workflow["jobs"].values():
            for step in job["steps"]:
                if step.get("uses", "").startswith("actions/checkout@"):
                    assert step["with"]["persist-credentials"] is False

    def test_jobs_that_write_run_no_code_of_the_change(self, workflow):
        assert workflow["permissions"] == {}
        for job in workflow["jobs"].values():
            if "write" in job["permissions"].values():
                assert not [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@")]


def test_ci_ends_with_the_tests():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("make test")


def test_pre_commit_downloads_nothing_and_runs_what_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    lint = (ROOT / "Makefile").read_text()
    for hook in hooks[0]["hooks"]:
        assert hook["language"] == "system"
        tool = " ".join(hook["entry"].removeprefix(".venv/bin/").split()[:3]).split(" --")[0]
        assert f"$(BIN)/{tool}" in lint
