"""The export stage: write the files, then hold what runs of them against what was evaluated.

Every file is run on the whole test split: the packed one in torch, the ONNX file in each runtime asked for, one of
format ``tensorrt`` in onnxruntime. Where activations are on static grids, onnxruntime is also held against exact
integer arithmetic (``integer``) on the first test images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fairquant.allocate.bitmap import BitMap
from fairquant.artifacts import atomic_path
from fairquant.config.export import ExportSection
from fairquant.config.schema import EvaluateSection
from fairquant.cost.size import MEGABYTE, size_report
from fairquant.data.store import Store
from fairquant.export.integer import IntegerSession
from fairquant.export.latency import latency
from fairquant.export.metadata import ModelMetadata, Quantization
from fairquant.export.onnx_file import OnnxForm, write_onnx
from fairquant.export.packed import load_packed, write_packed
from fairquant.export.parity import export_gates, parity, runtime_predictions
from fairquant.export.runtimes import open_session
from fairquant.models.describe import describe
from fairquant.models.fold import is_folded
from fairquant.models.io import load_model
from fairquant.models.spec import ModelSpec
from fairquant.predictions import Predictions, SplitPredictions
from fairquant.quantize.activate import activation_settings
from fairquant.quantize.folded import skeleton
from fairquant.quantize.state import load_quantized
from fairquant.train.predict import predict_splits

FILES = {"packed": "packed.safetensors", "onnx": "model.onnx", "tensorrt": "tensorrt.onnx"}
"""Names of the files, by format."""
STATIC = "static"


@dataclass(frozen=True)
class Quantized:
    """The model that is exported, as the quantize stage left it."""

    model: nn.Module
    spec: ModelSpec
    bits: BitMap
    metadata: ModelMetadata
    info: Mapping[str, Any]
    """The description of its full-precision skeleton (``models.describe``)."""

    @classmethod
    def load(cls, path: str | Path, store: Store) -> Quantized:
        """Read the file of the quantize stage; ``store`` names the groups, and enters the provenance."""
        model, spec, bits = load_quantized(path)
        info = describe(skeleton(spec, folded=is_folded(model)), spec)
        shapes = {name: tuple(layer["shape"]) for name, layer in info["layers"].items()}
        quantization = Quantization.of(bits, shapes, activation_settings(model))
        source = hashlib.sha256(Path(path).read_bytes()).hexdigest() + str(store.meta["checksum"])
        provenance = hashlib.sha256(source.encode()).hexdigest()
        metadata = ModelMetadata.of(spec, groups=store.group_names, provenance=provenance, quantization=quantization)
        return cls(model, spec, bits, metadata, info)


def write_files(folder: str | Path, source: Quantized, *, section: ExportSection) -> dict[str, Any]:
    """Write the files of ``section.formats`` into ``folder``, all or none.

    Returns ``provenance``, ``size`` in 10^6 bytes (``<format>_mb`` as the files lie on disk, ``computed_mb`` what the
    parts of a packed file add up to, ``weights_mb`` Σ bits/8, ``fp32_mb``) and, of an ONNX file, its ``form``: how many
    layers compute in integers, and which do not.
    """
    result: dict[str, Any] = {"provenance": source.metadata.provenance}
    size: dict[str, float] = {}
    with atomic_path(folder) as partial:
        partial.mkdir()
        for name in section.formats:
            path = partial / FILES[name]
            if name == "packed":
                write_packed(path, source.model, source.metadata)
            else:
                form = write_onnx(path, source.model, source.metadata, flavour=name)
                result |= {"form": _form(form)} if name == "onnx" else {}
            size[f"{name}_mb"] = path.stat().st_size / MEGABYTE
    shapes = {name: tuple(layer["shape"]) for name, layer in source.info["layers"].items()}
    computed = size_report(source.bits, shapes, rest=source.info["parameters"]["rest"]).to_dict()
    size |= {"computed_mb": computed["packed_mb"], "weights_mb": computed["reference_mb"]}
    return result | {"size": size | {"fp32_mb": computed["fp32_mb"]}}


@dataclass(frozen=True)
class Checks:
    """What the written files are held against.

    Attributes:
        folder: the files, as ``write_files`` leaves them.
        store: the prepared data.
        simulation: the evaluated predictions of the test split.
        section: which runtimes, and the gates.
        evaluate: batch size, groups that count.
        device: where the packed file is run.
        precision: of that.
    """

    folder: Path
    store: Store
    simulation: SplitPredictions
    section: ExportSection
    evaluate: EvaluateSection
    device: torch.device
    precision: str

    def predictions(self) -> dict[str, SplitPredictions]:
        """Run every file on the test split; by ``packed``, the name of the runtime, or ``tensorrt``."""
        found = {}
        if "packed" in self.section.formats:
            model = load_packed(self.folder / FILES["packed"])
            how: dict[str, Any] = {"device": self.device, "precision": self.precision}
            size = self.evaluate.batch_size
            found["packed"] = predict_splits(model, self.store, ("test",), batch_size=size, **how)["test"]
        if "onnx" in self.section.formats:
            found |= {runtime: self._run("onnx", runtime) for runtime in self.section.runtimes}
        if "tensorrt" in self.section.formats and "onnxruntime" in self.section.runtimes:
            found["tensorrt"] = self._run("tensorrt", "onnxruntime")
        return found

    def compare(self, found: Mapping[str, SplitPredictions], *, form: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``parity`` of each of ``found``, ``gates``, and ``integer`` where that is defined."""
        names = {"classes": self.store.classes, "groups": self.store.group_names}
        result = {name: parity(self.simulation, part, section=self.evaluate, **names) for name, part in found.items()}
        metrics: dict[str, Any] = {"parity": result} if result else {}
        if self.section.integer_images and form.get("activations") == STATIC and "onnxruntime" in found:
            metrics["integer"] = self._integer(found["onnxruntime"])
        return metrics | {"gates": export_gates(result, self.section.gates)}

    def _run(self, name: str, runtime: str) -> SplitPredictions:
        session = open_session(self.folder / FILES[name], runtime, threads=max(1, torch.get_num_threads()))
        title = name if name == "tensorrt" else runtime
        return runtime_predictions(
            session, self.store, "test", batch_size=self.evaluate.batch_size, name=f"test split in {title}"
        )

    def _integer(self, runtime: SplitPredictions) -> dict[str, Any]:
        """Hold onnxruntime's logits of the first test images against exact integer arithmetic."""
        exact = runtime_predictions(
            IntegerSession(self.folder / FILES["onnx"]),
            self.store,
            "test",
            batch_size=min(32, self.evaluate.batch_size),
            limit=self.section.integer_images,
            name="integer arithmetic",
        )
        n = len(exact.labels)
        difference = np.abs(exact.logits - runtime.logits[:n])
        return {
            "n": n,
            "agreement": float((exact.predicted == runtime.predicted[:n]).mean()),
            "equal": float((difference.max(axis=1) == 0).mean()),
            "max_logit_difference": float(difference.max()),
        }


def as_predictions(found: Mapping[str, SplitPredictions], store: Store) -> Predictions:
    """Return the predictions of all files as one object, ``<name>`` in the place of a split."""
    return Predictions(tuple(store.classes), tuple(store.group_names), found)


def timed(pretrained: str | Path, folder: Path, *, section: ExportSection) -> dict[str, Any]:
    """Return ``latency`` of the full-precision model and the ONNX file; nothing where it is not asked for."""
    if not section.latency.runs or "onnx" not in section.formats:
        return {}
    model, spec = load_model(pretrained)
    path = folder / FILES["onnx"]
    return {"latency": latency(model, spec, path, runtimes=section.runtimes, section=section.latency)}


def _form(form: OnnxForm) -> dict[str, Any]:
    return {
        "integer_layers": len(form.integer_layers),
        "float_layers": len(form.float_layers),
        "float_names": list(form.float_layers),
        "activations": form.activations,
        "activation_bits": form.activation_bits,
    }
