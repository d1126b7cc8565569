"""Phase baseline: a trained classifier for each model and seed, by the pipeline's own stages, in workspaces.

The data are prepared once, since their split has a seed of its own. A classifier that is there is not trained again,
and a killed training goes on from its last epoch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fairquant.artifacts import write_text
from fairquant.config import Config
from fairquant.config.load import parse_config
from fairquant.config.yaml_core import read_yaml, write_yaml
from fairquant.errors import UserError
from scripts.curves.points import parse_setting, with_settings
from scripts.curves.workspace import MODEL, PREPARED, Workspace

BASE = "params.yaml"
DONE = "metrics/pretrain.json"


@dataclass(frozen=True)
class Baseline:
    """Where the classifiers of one analysis are, and what they are trained with.

    Attributes:
        root: the analysis' folder.
        params: params.yaml of all, but for model and seed.
    """

    root: Path
    params: Mapping[str, Any]

    @classmethod
    def begin(cls, root: Path, params: Path, settings: Sequence[str], *, debug: bool) -> Baseline:
        """Return the baseline of ``root`` from the file ``params`` with KEY=VALUE ``settings``.

        Raises ``UserError`` where the folder holds an analysis with other settings.
        """
        try:
            raw = read_yaml(params.read_text(encoding="utf-8"), source=str(params))
        except FileNotFoundError:
            raise UserError(f"{params}: not found; run from the repository's folder") from None
        given = dict(map(parse_setting, settings))
        if "model.name" in given:
            raise UserError("--set: got 'model.name'; allowed: --models")
        changed = with_settings(raw, {**given, **({"debug": True} if debug else {})})
        config = parse_config(changed)
        changed["data"] = {**changed["data"], "path": str(Path(config.data.path).absolute())}
        path = root / BASE
        if path.exists() and read_yaml(path.read_text(encoding="utf-8"), source=str(path)) != changed:
            raise UserError(f"--name: got {root} with other settings ({path}); allowed: the same, or another --name")
        return cls(root, changed)

    def workspaces(self, models: Sequence[str], seeds: Sequence[int], say: Callable[[str], None]) -> list[Workspace]:
        """Prepare the data and train what is missing; return the workspaces, a model's seeds together."""
        for option, values in (("--models", models), ("--seeds", seeds)):
            if not values or len(set(values)) < len(values):
                raise UserError(f"{option}: got {' '.join(map(str, values)) or 'none'}; allowed: each value once")
        configs = {
            (model, seed): with_settings(self.params, {"model.name": model, "seed": seed})
            for model in models
            for seed in seeds
        }
        for params in configs.values():
            parse_config(params)
        write_text(self.root / BASE, write_yaml(dict(self.params)))
        if not (self.root / PREPARED).exists():
            say(f"{self.root / PREPARED}: preparing {self.params['data']['name']}")
            _stage("prepare", self.root, parse_config(dict(self.params)))
        return [self._workspace(model, seed, params, say) for (model, seed), params in configs.items()]

    def _workspace(self, model: str, seed: int, params: Mapping[str, Any], say: Callable[[str], None]) -> Workspace:
        folder = self.root / "workspaces" / f"{model.replace('/', '_')}-s{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / BASE, write_yaml(dict(params)))
        _link(folder / PREPARED, (self.root / PREPARED).absolute())
        weights = Path("data/weights").absolute()
        if weights.is_dir():
            _link(folder / "data/weights", weights)
        if not ((folder / DONE).exists() and (folder / MODEL).exists()):
            say(f"{folder}: training {model}, seed {seed}")
            _stage("pretrain", folder, parse_config(dict(params)))
        return named(Workspace.open(str(folder)))


def named(workspace: Workspace) -> Workspace:
    """Return ``workspace`` with its model's name as task: an analysis is of one data set."""
    return replace(workspace, task=str(workspace.description["spec"]["name"]))


def open_named(text: str) -> Workspace:
    """Open ``FOLDER``, named after its model, or ``MODEL=FOLDER``."""
    workspace = Workspace.open(text)
    return workspace if str(workspace.path) != text else named(workspace)


def _stage(name: str, folder: Path, config: Config) -> None:
    """Run a stage of the pipeline in ``folder``."""
    import importlib

    with contextlib.chdir(folder):
        importlib.import_module(f"stages.{name}").main(config)


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.unlink(missing_ok=True)  # one that leads nowhere: the folder was moved
        path.symlink_to(target, target_is_directory=True)
