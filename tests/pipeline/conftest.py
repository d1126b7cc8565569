"""A copy of the repository with a quick configuration, on which dvc itself is run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CODE = ("stages", "fairquant", "dvc.yaml", "params.yaml", ".dvcignore", ".gitignore", "data/raw/README.md",
        "data/weights/README.md")  # fmt: skip


class Workspace:
    """A git and DVC repository in a temporary folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        bin_folder = str(Path(sys.executable).parent)
        # What runs here is a copy: measuring its coverage would take time and count for nothing.
        own = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        own.pop("PYTHONDONTWRITEBYTECODE", None)  # dozens of stages start here: their code is compiled once
        self.environment = {**own, "PATH": bin_folder + os.pathsep + os.environ["PATH"],
                            "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}  # fmt: skip

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``command`` in the workspace and return what it printed."""
        done = subprocess.run(command, cwd=self.path, env=self.environment, capture_output=True, text=True)
        if check and done.returncode != 0:
            raise AssertionError(f"{command} exited {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start ``command`` in a process group of its own."""
        return subprocess.Popen(command, cwd=self.path, env=self.environment, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL, text=True, start_new_session=True)  # fmt: skip

    def set_params(self, **changes: object) -> None:
        """Set dotted keys (written with ``__``) in params.yaml."""
        path = self.path / "params.yaml"
        params = yaml.safe_load(path.read_text())
        for key, value in changes.items():
            *sections, leaf = key.split("__")
            target = params
            for section in sections:
                target = target[section]
            target[leaf] = value
        path.write_text(yaml.safe_dump(params, sort_keys=False))

    def commit(self, message: str) -> None:
        """Commit everything that git does not ignore."""
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", message)


def copy_code(target: Path) -> Workspace:
    """Copy the pipeline's code to ``target`` and make it a repository with quick parameters."""
    for name in CODE:
        source, place = ROOT / name, target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place)
    workspace = Workspace(target)
    workspace.run("git", "init", "-q")
    workspace.run("git", "config", "user.email", "test@example.org")
    workspace.run("git", "config", "user.name", "test")
    workspace.run("dvc", "init", "-q")
    quick = {"debug": True, "model__name": "test_resnet", "data__image_size": 32, "importance__samples_per_group": 16}
    workspace.set_params(**quick, export__formats=["packed"])
    return workspace


@pytest.fixture
def make_workspace(tmp_path: Path) -> Callable[[], Workspace]:
    """Return a maker of fresh workspaces."""
    count = iter(range(10))
    return lambda: copy_code(tmp_path / f"workspace{next(count)}")


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Return a workspace in which ``dvc repro`` has run and everything is committed."""
    workspace = copy_code(tmp_path_factory.mktemp("reproduced"))
    workspace.run("dvc", "repro")
    workspace.commit("reproduced")
    return workspace
