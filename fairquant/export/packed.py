"""A quantized model in one small file: ``write_packed``, and ``load_packed``, which needs nothing else.

Weights take their own widths, and nothing is stored that the architecture tells: see docs/packed.md for the format.
What is loaded is a plain model: float weights, each a code times its step size (or out of its codebook), with
activation quantizers where activations are quantized. It puts out what the simulation does, bit for bit. Nothing is
unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fairquant.allocate.bitmap import BitMap
from fairquant.errors import ArtifactError, UserError
from fairquant.export.codes import CodedLayer, coded_layers
from fairquant.export.metadata import KEY as METADATA
from fairquant.export.metadata import ModelMetadata
from fairquant.export.packing import container, streams
from fairquant.export.packing.header import Header
from fairquant.export.packing.plain_tensors import architecture, load_plain, plain_arrays
from fairquant.models.fold import is_folded
from fairquant.models.layers import quantizable_layers, weight_parameter
from fairquant.models.spec import ModelSpec
from fairquant.quantize.activation_state import activation_state, with_activation_state
from fairquant.quantize.attach import bitmap_of
from fairquant.quantize.folded import skeleton

HEADER = "packed"
"""Where a file's JSON about its own layout stands; the metadata stand under ``fairquant``, as in an ONNX file."""
STEPS, ZERO_POINTS = "activation_steps", "activation_zero_points"


@dataclass(frozen=True, eq=False)
class Packed:
    """What a packed file holds.

    Attributes:
        model: plain torch module in evaluation mode on the CPU.
        metadata: what the file says of the model.
        bits: the width of every unit.
        layers: the quantizable layers as they are stored, by name.
        header: how the file is laid out.
    """

    model: nn.Module
    metadata: ModelMetadata
    bits: BitMap
    layers: Mapping[str, CodedLayer]
    header: Header

    @property
    def spec(self) -> ModelSpec:
        """Architecture, classes and input of the model."""
        return self.metadata.spec

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups the model was examined on."""
        return self.metadata.groups


def write_packed(path: str | Path, model: nn.Module, metadata: ModelMetadata) -> None:
    """Write a quantized ``model`` (as ``load_quantized`` returns it), atomically; bytes depend on the content alone.

    Raises ``UserError`` for a model without quantizers, one that is not what ``metadata`` says, and one with weights
    that are not finite.
    """
    bits, record, spec = bitmap_of(model), architecture(model), metadata.spec
    if record != architecture(skeleton(spec, folded=is_folded(model))):
        raise UserError(f"model: got a {type(model).__name__} that is no {spec.name}; allowed: the model of the spec")
    layers = _checked_layers(model)
    activations, grids = activation_state(model)
    header = Header(
        granularity=bits.granularity,
        scheme=bits.scheme,
        codebook=bits.codebook,
        folded=is_folded(model),
        activations=activations or None,
        architecture=record,
    )
    arrays = streams.to_arrays(layers) | plain_arrays(model)
    if grids:
        names = activations["names"]
        arrays[STEPS] = np.array([grids[f"activation/{name}/scale"] for name in names], np.float32)
        arrays[ZERO_POINTS] = np.array([grids[f"activation/{name}/zero_point"] for name in names], np.int32)
    container.write(path, {METADATA: metadata.to_json(), HEADER: header.to_json()}, arrays)


def _checked_layers(model: nn.Module) -> dict[str, CodedLayer]:
    """Return the layers as they are stored, after a look at whether they stand for what the model computes with."""
    weights = {name: layer.weight.detach().cpu().float().numpy() for name, layer in quantizable_layers(model).items()}
    for name, weight in weights.items():
        if not np.isfinite(weight).all():
            raise UserError(f"layer {name}: got weights that are NaN or infinite; allowed: finite numbers")
    layers = coded_layers(model)
    for name, layer in layers.items():
        if not np.array_equal(layer.weight(), weights[name]):
            raise RuntimeError(f"layer {name}: its codes stand for other weights than its own")
    return layers


def load_packed(path: str | Path) -> nn.Module:
    """Return the model that ``write_packed`` wrote: plain float weights, in evaluation mode, on the CPU.

    Its logits are those of the quantized model bit for bit. Raises ``ArtifactError``, one line, for a file that is
    missing, damaged, of another kind, or of an architecture that the installed libraries build differently.
    """
    return read_packed(path).model


def read_packed(path: str | Path) -> Packed:
    """Read what ``write_packed`` wrote; raises as ``load_packed`` does."""
    try:
        return _read(path)
    except MemoryError:
        raise ArtifactError(f"{path}: got a model that does not fit into memory; allowed: a smaller one") from None
    except UserError as error:
        text = str(error) if str(error).startswith(f"{path}: ") else f"{path}: {error}"
        raise ArtifactError(" ".join(text.split())) from None


def _read(path: str | Path) -> Packed:
    texts, arrays = container.read(path)
    if sorted(texts) != sorted((METADATA, HEADER)):
        raise ArtifactError(f"got the texts {sorted(texts)}; allowed: {METADATA}, {HEADER}")
    metadata, header = ModelMetadata.from_json(texts[METADATA], source=str(path)), Header.from_json(texts[HEADER])
    model = skeleton(metadata.spec, folded=header.folded)
    if architecture(model) != header.architecture:
        raise ArtifactError(
            f"got {metadata.spec.name} with other tensors than the installed libraries give it; allowed: the versions "
            "of torch, torchvision and timm it was written with"
        )
    shapes = {name: tuple(layer.weight.shape) for name, layer in quantizable_layers(model).items()}
    bare = BitMap(header.granularity, {}, scheme=header.scheme, codebook=header.codebook)
    bits = streams.read_bits(arrays, bare, shapes)
    layers = streams.from_arrays(arrays, bits, shapes)
    _set_weights(model, layers)
    left = {name: array for name, array in arrays.items() if name not in streams.NAMES}
    grids = _activation_grids(left, header.activations)
    load_plain(model, left)
    model = with_activation_state(model, header.activations, grids)
    return Packed(model.eval(), metadata, bits, layers, header)


@torch.no_grad()
def _set_weights(model: nn.Module, layers: Mapping[str, CodedLayer]) -> None:
    for name, layer in quantizable_layers(model).items():
        weight_parameter(layer).copy_(torch.from_numpy(layers[name].weight()))


def _activation_grids(arrays: container.Arrays, activations: Mapping[str, Any] | None) -> container.Arrays:
    """Take the grids out of ``arrays``; return them under the names that ``with_activation_state`` looks for."""
    names = [] if activations is None or activations["dynamic"] else activations["names"]
    grids: container.Arrays = {}
    for key, part, kind in ((STEPS, "scale", np.float32), (ZERO_POINTS, "zero_point", np.int32)):
        found = arrays.pop(key, np.empty(0, kind))
        if found.dtype != kind or len(found) != len(names):
            raise ArtifactError(f"got {len(found)} {key} ({found.dtype}); allowed: {len(names)}, one for each point")
        grids |= {f"activation/{name}/{part}": value for name, value in zip(names, found, strict=True)}
    return grids
