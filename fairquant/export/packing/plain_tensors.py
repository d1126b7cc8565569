"""What of a model is not quantized: biases, batch norm, position embeddings, counters; kept bit for bit.

All tensors of one type stand in one flat array, ``rest.F32`` and so on by the names of ``container.TYPES``: in
ascending order of their state-dict names, each in C order. A tensor that has two names stands under the first of them,
and the weights of quantizable layers under none.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor, nn

from fairquant.errors import ArtifactError, UserError
from fairquant.export.packing.container import NAMES, TYPES, Arrays, shortened
from fairquant.models.layers import quantizable_layers, weight_parameter
from fairquant.quantize.state import plain_state

PREFIX = "rest."
_KINDS = {str(dtype): PREFIX + name for dtype, name in NAMES.items()}


def architecture(model: nn.Module) -> str:
    """Return the sha256 of the lines ``NAME TYPE SHAPE`` of the full-precision state dict, in ascending order.

    Types are torch's, shapes are like ``64x3x7x7``, empty for a single number; a line ends in one newline.
    """
    state = plain_state(model)
    lines = (
        f"{name} {str(t.dtype).removeprefix('torch.')} {'x'.join(map(str, t.shape))}\n" for name, t in state.items()
    )
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def plain_arrays(model: nn.Module) -> Arrays:
    """Return the arrays of ``model``; ``UserError`` for a type the file does not have, and for NaN."""
    parts: dict[str, list[np.ndarray]] = {}
    for name, tensor in _plain_tensors(model).items():
        if _type(tensor) not in _KINDS:
            raise UserError(f"{name}: got {_type(tensor)}; allowed: {' | '.join(_KINDS)}")
        array = tensor.detach().cpu().numpy()
        if np.isnan(array).any():
            raise UserError(f"{name}: got NaN; allowed: numbers")
        parts.setdefault(_KINDS[_type(tensor)], []).append(array.reshape(-1))
    return {name: np.concatenate(arrays) for name, arrays in sorted(parts.items())}


@torch.no_grad()
def load_plain(model: nn.Module, arrays: Arrays) -> None:
    """Copy ``arrays`` into the full-precision ``model``; ``ArtifactError`` unless they are exactly its own."""
    by_kind: dict[str, list[Tensor]] = {}
    for tensor in _plain_tensors(model).values():
        by_kind.setdefault(_KINDS[_type(tensor)], []).append(tensor)
    for name in sorted(by_kind.keys() ^ arrays.keys()):
        held = "no" if name in by_kind else "a"
        raise ArtifactError(f"got {held} tensor {shortened(name)}; allowed: {', '.join(sorted(by_kind))}")
    for name, tensors in by_kind.items():
        array, wanted = arrays[name], sum(tensor.numel() for tensor in tensors)
        if array.dtype != TYPES[name.removeprefix(PREFIX)] or len(array) != wanted:
            raise ArtifactError(f"got {len(array)} numbers ({array.dtype}) in {name}; allowed: {wanted}")
        if np.isnan(array).any():
            raise ArtifactError(f"got NaN in {name}; allowed: numbers")
        start = 0
        for tensor in tensors:
            part = np.array(array[start : start + tensor.numel()])
            tensor.copy_(torch.from_numpy(part).reshape(tensor.shape))
            start += tensor.numel()


def _plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors by name, ascending, each once; without weights of quantizable layers and empty ones."""
    seen = {weight_parameter(layer).data_ptr() for layer in quantizable_layers(model).values()}
    tensors: dict[str, Tensor] = {}
    for name, tensor in sorted(plain_state(model).items()):
        if tensor.numel() and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            tensors[name] = tensor
    return tensors


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
