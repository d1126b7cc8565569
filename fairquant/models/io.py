"""A model on disk: ``<name>.safetensors`` (its state dict) and ``<name>.json`` (its description, see ``describe``).

The tensors keep their state-dict names, so the file is also a valid ``model.weights`` path. Bytes depend on the
content alone; the JSON carries the tensors' checksum, so two halves of different models are noticed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairquant import artifacts
from fairquant.errors import ArtifactError, UserError
from fairquant.models.build import build
from fairquant.models.describe import describe
from fairquant.models.spec import ModelSpec
from fairquant.models.weights import load_into


def save_model(path: str | Path, model: nn.Module, spec: ModelSpec, *, meta: Mapping[str, Any] | None = None) -> None:
    """Write ``model`` to ``path`` (``.safetensors``) and its description next to it (``.json``), each atomically.

    ``meta`` holds further plain values for the JSON's ``meta`` key (epochs, best epoch ...).
    """
    target = Path(path)
    tensors = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    artifacts.write_tensors(target, tensors, meta={"kind": "model", "spec": spec.to_dict()})
    description = {**describe(model, spec), "checksum": _checksum(target), "meta": dict(meta or {})}
    artifacts.write_json(target.with_suffix(".json"), description)


def load_model(path: str | Path) -> tuple[nn.Module, ModelSpec]:
    """Rebuild what ``save_model`` wrote: (the model on the CPU in evaluation mode, its spec).

    Raises ``ArtifactError`` when a file is missing, damaged, or the two do not belong together.
    """
    target = Path(path)
    description = load_description(target)
    arrays, _ = artifacts.read_tensors(target)
    if _checksum(target) != description.get("checksum"):
        raise ArtifactError(f"{target}: got other tensors than its .json describes; run the stage that writes both")
    spec = ModelSpec.from_dict(description["spec"], source=str(target.with_suffix(".json")))
    model = build(spec, seed=0)
    try:
        state = {name: torch.from_numpy(array) for name, array in arrays.items()}
        load_into(model, state, strict=True, source=str(path))
    except UserError as error:
        raise ArtifactError(str(error)) from None
    return model.eval(), spec


def load_description(path: str | Path) -> dict[str, Any]:
    """Read the JSON next to the model file ``path``; raises ``ArtifactError`` where it is not a model's description."""
    file = Path(path).with_suffix(".json")
    description = artifacts.read_json(file)
    absent = [key for key in ("spec", "layers", "roles", "macs", "parameters") if key not in description]
    if absent:
        raise ArtifactError(f"{file}: got no {', '.join(absent)}; allowed: the description of a model (save_model)")
    return description


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
