"""A folder with a trained classifier, as ``dvc repro baseline`` leaves it. Opened without torch, to plan the points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairquant.allocate.info import ModelInfo
from fairquant.artifacts import read_json
from fairquant.config import Config
from fairquant.config.load import load_config
from fairquant.config.yaml_core import read_yaml
from fairquant.data.store import Store
from fairquant.errors import ArtifactError, UserError

MODEL = "models/pretrained.safetensors"
DESCRIPTION = "models/pretrained.json"
PREPARED = "data/prepared"
DIGITS = 12


@dataclass(frozen=True)
class Workspace:
    """What is known of a trained classifier without loading it.

    Attributes:
        path: the folder.
        task: data set, label, groups and model in words, or the name given.
        params: params.yaml as it stands there.
        config: the same, validated.
        store: the prepared data.
        description: models/pretrained.json.
        checksum: of the classifier's weights.
    """

    path: Path
    task: str
    params: dict[str, Any]
    config: Config
    store: Store
    description: dict[str, Any]
    checksum: str

    @classmethod
    def open(cls, text: str) -> Workspace:
        """Open ``FOLDER`` or ``TASK=FOLDER``; a file that is missing or foreign raises ``UserError``."""
        name, separator, rest = text.partition("=")
        named = bool(separator) and "/" not in name
        path = Path(rest if named else text)
        if not path.is_dir():
            raise UserError(f"WORKSPACE: got {text!r}, no folder; allowed: FOLDER or TASK=FOLDER")
        config = load_config(path / "params.yaml", meta=path / PREPARED / "meta.json")
        store = Store.open(path / PREPARED)
        description = read_json(path / DESCRIPTION)
        ModelInfo.from_json(description)
        if "checksum" not in description:
            raise ArtifactError(f"{path / DESCRIPTION}: got no 'checksum'; allowed: what the pretrain stage writes")
        if not (path / MODEL).is_file():
            raise ArtifactError(f"{path / MODEL}: not found; run the stage that writes it (dvc repro)")
        params = read_yaml((path / "params.yaml").read_text(encoding="utf-8"), source=str(path / "params.yaml"))
        task = name if named else task_name(config, store, description)
        if not task or len(task.splitlines()) > 1:
            raise UserError(f"WORKSPACE: got the task {task!r}; allowed: one line of text")
        return cls(path, task, params, config, store, description, description["checksum"])

    @property
    def info(self) -> ModelInfo:
        """The classifier's layers."""
        return ModelInfo.from_json(self.description)

    @property
    def classifier(self) -> str:
        """The start of the checksum, as rows hold it."""
        return self.checksum[:DIGITS]


def task_name(config: Config, store: Store, description: dict[str, Any]) -> str:
    """Return what is classified, for whom, and by what: "ham10000_64 dx by age_group, resnet18"."""
    data = config.data
    folder = Path(data.path).parent if Path(data.path).suffix == ".csv" else Path(data.path)
    source = folder.name if data.name == "folder" else data.name
    label = f" {data.label}" if data.label else ""
    groups = " × ".join(map(str, store.meta.get("group_columns", data.group or ["group"])))
    return f"{source}{label} by {groups}, {description['spec']['name']}"


def open_all(texts: Sequence[str]) -> list[Workspace]:
    """Open several workspaces; two of one task and seed raise ``UserError``."""
    found = [Workspace.open(text) for text in texts]
    seen: dict[tuple[str, int], Path] = {}
    for workspace in found:
        key = workspace.task, workspace.config.seed
        other = seen.get(key)
        if other is not None:
            raise UserError(
                f"WORKSPACE: got {other} and {workspace.path}, both {workspace.task!r} with seed "
                f"{workspace.config.seed}; allowed: one of each, or names for them (TASK=FOLDER)"
            )
        seen[key] = workspace.path
    return found
