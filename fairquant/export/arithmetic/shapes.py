"""The ONNX operators that move, pick or count numbers without changing them: of floats, codes and shapes alike.

A function takes the node's attributes and its inputs (None where absent) and returns the first output, or a tuple of
all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fairquant.errors import UserError

Attributes = dict[str, Any]
Operator = Callable[..., Tensor | tuple[Tensor, ...]]


def whole(values: Tensor | Sequence[int] | None) -> list[int]:
    """Return an axes, shape or bounds input as numbers; empty where absent."""
    if values is None:
        return []
    return [int(value) for value in (values.reshape(-1).tolist() if isinstance(values, Tensor) else values)]


def _pad(
    attributes: Attributes, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    if attributes.get("mode", b"constant") != b"constant" or axes is not None:
        raise UserError(f"Pad: got mode {attributes.get('mode', b'constant').decode()}; allowed: constant, all axes")
    ends = whole(pads)
    sides = [side for axis in reversed(range(x.ndim)) for side in (ends[axis], ends[axis + x.ndim])]
    return F.pad(x, sides, value=0.0 if value is None else float(value))


def _reshape(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = whole(shape)
    if not attributes.get("allowzero"):
        sizes = [x.shape[place] if size == 0 else size for place, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(attributes: Attributes, x: Tensor) -> Tensor:
    first = attributes.get("axis", 1) % (x.ndim + 1)
    return x.reshape(math.prod(x.shape[:first]), math.prod(x.shape[first:]))


def _transpose(attributes: Attributes, x: Tensor) -> Tensor:
    return x.permute(attributes.get("perm", range(x.ndim)[::-1]))


def _squeeze(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(whole(axes)))


def _unsqueeze(attributes: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(axis % rank for axis in whole(axes)):
        x = x.unsqueeze(axis)
    return x


def _slice(
    attributes: Attributes,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first, last = whole(starts), whole(ends)
    for axis, start, end, step in zip(
        whole(axes) or range(len(first)), first, last, whole(steps) or [1] * len(first), strict=True
    ):
        places = range(x.shape[axis])[start:end:step]
        x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x


def _gather(attributes: Attributes, x: Tensor, places: Tensor) -> Tensor:
    axis = attributes.get("axis", 0) % x.ndim
    flat = places.reshape(-1).to(torch.int64)
    picked = x.index_select(axis, torch.where(flat < 0, flat + x.shape[axis], flat))
    return picked.reshape(x.shape[:axis] + places.shape + x.shape[axis + 1 :])


def _concat(attributes: Attributes, *parts: Tensor) -> Tensor:
    return torch.cat(parts, attributes["axis"])


def _split(attributes: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    if sizes is not None:
        return torch.split(x, whole(sizes), axis)
    return torch.split(x, -(-x.shape[axis] // attributes["outputs"]), axis)


def _shape(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(tuple(x.shape)[attributes.get("start", 0) : attributes.get("end")], dtype=torch.int64)


def _cast(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy().astype(helper.tensor_dtype_to_np_dtype(attributes["to"])))


def _constant_of_shape(attributes: Attributes, shape: Tensor) -> Tensor:
    value = numpy_helper.to_array(attributes["value"]) if "value" in attributes else np.zeros(1, np.float32)
    return torch.from_numpy(np.full(whole(shape), value.reshape(())))


SHAPE_OPERATORS: dict[str, Operator] = {
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
