"""A workspace with another training set, and the classifier trained on it, by the settings of its pretrain stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairquant.artifacts import read_json, write_text
from fairquant.config import Config
from fairquant.config.load import parse_config
from fairquant.config.yaml_core import read_yaml, write_yaml
from fairquant.errors import UserError
from scripts.analysis.skew import AS_IS, subsample
from scripts.curves.points import with_settings
from scripts.curves.workspace import DESCRIPTION, MODEL, Workspace

RECORD = "trained.yaml"


@dataclasses.dataclass(frozen=True)
class Skew:
    """Which training set: ``data`` as_is | fair | unfair, ``by`` class | group, and ``ratio`` of most to fewest."""

    data: str
    by: str
    ratio: float


def derive(workspace: Workspace, skew: Skew, folder: Path, given: Mapping[str, Any]) -> Workspace:
    """Return ``workspace`` with the training set of ``skew``, and the classifier trained on it, kept in ``folder``.

    Args:
        workspace: a trained classifier; returned as it is for ``as_is``.
        skew: the training set.
        folder: holds the classifier; one that is there is not trained again.
        given: settings of params.yaml besides the workspace's own.

    Raises:
        UserError: ``folder`` holds one that was trained otherwise, or there are too few images.
    """
    if skew.data == AS_IS:
        return workspace
    store = subsample(workspace.store, skew.data, by=skew.by, ratio=skew.ratio, seed=workspace.config.seed)
    own = dataclasses.replace(workspace, path=folder, store=store)
    params = with_settings(workspace.params, given)
    about = {"data": store.meta["checksum"], **{name: params[name] for name in ("seed", "model", "pretrain")}}
    record = folder / RECORD
    if record.exists() and read_yaml(record.read_text(encoding="utf-8"), source=str(record)) != about:
        raise UserError(f"--out: got {folder}, a classifier trained otherwise; allowed: the same settings, or another")
    if not record.exists():
        _train(own, parse_config(params))
        write_text(record, write_yaml(about))
    description = read_json(folder / DESCRIPTION)
    return dataclasses.replace(own, description=description, checksum=description["checksum"])


def _train(workspace: Workspace, config: Config) -> None:
    """Train the full-precision classifier as the pretrain stage does, on the workspace's own training set."""
    from fairquant.devices import resolve_device, seed_everything
    from fairquant.models.build import build
    from fairquant.models.io import save_model
    from fairquant.models.spec import ModelSpec
    from fairquant.train.loop import fit

    seed_everything(config.seed)
    spec = ModelSpec.from_dict(workspace.description["spec"])
    model = build(spec, weights=config.model.weights, strict=config.model.strict, seed=config.seed)
    fit(
        model,
        workspace.store,
        section=config.pretrain.model_copy(update={"epochs": min(config.pretrain.epochs, 1)} if config.debug else {}),
        seed=config.seed,
        device=resolve_device(config.device),
        precision=config.precision,
        checkpoint_dir=workspace.path / "resume",
    )
    save_model(workspace.path / MODEL, model, spec)
