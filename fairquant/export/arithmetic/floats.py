"""The ONNX operators that stay floating numbers beside the quantized ones, computed by torch.

A function takes the node's attributes and its inputs (None where absent) and returns the first output. Results equal
onnxruntime's up to the rounding of float32 sums and of the functions' approximations; what is added or multiplied one
to one is equal, and so are means over the last dimensions (``fairquant.export.arithmetic.mean``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fairquant.export.arithmetic.mean import mean_in_order
from fairquant.export.arithmetic.ops import max_pool
from fairquant.export.arithmetic.shapes import Attributes, Operator, whole
from fairquant.export.arithmetic.window import window_of


def _elementwise(function: Callable[..., Tensor]) -> Operator:
    return lambda attributes, *inputs: function(*inputs)


def _div(attributes: Attributes, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _clip(attributes: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if low is None and high is None:
        return x
    return torch.clamp(x, low, high)


def _leaky_relu(attributes: Attributes, x: Tensor) -> Tensor:
    return F.leaky_relu(x, attributes.get("alpha", 0.01))


def _hard_sigmoid(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.clamp(x * attributes.get("alpha", 0.2) + attributes.get("beta", 0.5), 0, 1)


def _gelu(attributes: Attributes, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=attributes.get("approximate", b"none").decode())


def _softmax(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.softmax(x, attributes.get("axis", -1))


def _layer_normalization(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    first = attributes.get("axis", -1) % x.ndim
    return F.layer_norm(x, x.shape[first:], scale, bias, attributes.get("epsilon", 1e-5))


def _gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    left, right = (x.mT if attributes.get(key) else x for x, key in ((a, "transA"), (b, "transB")))
    product: Tensor = attributes.get("alpha", 1.0) * (left @ right)
    if c is not None:
        product = product + attributes.get("beta", 1.0) * c
    return product


def _conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    window = window_of(attributes, "Conv")
    return F.conv2d(
        F.pad(x, window.padding), weight, bias, window.strides, 0, window.dilations, window.groups
    )  # fmt: skip


def _max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    return max_pool(x, kernel=attributes["kernel_shape"], window=window_of(attributes, "MaxPool"))


def _average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    window, kernel = window_of(attributes, "AveragePool"), tuple(attributes["kernel_shape"])
    ones = torch.ones((1, 1, *x.shape[-2:]))
    counted = float(attributes.get("count_include_pad", 0))
    inside = window.padded(ones, kernel, outside=counted, beyond=0.0)
    values = window.padded(x, kernel, outside=0.0, beyond=0.0)
    sums, count = (F.avg_pool2d(part, kernel, window.strides, divisor_override=1) for part in (values, inside))
    return sums / count


def _global_average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


def _reduce_mean(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    dims = whole(attributes.get("axes")) or whole(axes) or list(range(x.ndim))
    return mean_in_order(x, dims, keepdim=bool(attributes.get("keepdims", 1)))


def _reduce_min(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    dims = whole(attributes.get("axes")) or whole(axes) or list(range(x.ndim))
    return x.amin(dim=dims, keepdim=bool(attributes.get("keepdims", 1)))


def _reduce_max(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    dims = whole(attributes.get("axes")) or whole(axes) or list(range(x.ndim))
    return x.amax(dim=dims, keepdim=bool(attributes.get("keepdims", 1)))


FLOAT_OPERATORS: dict[str, Operator] = {
    "AveragePool": _average_pool,
    "Clip": _clip,
    "Conv": _conv,
    "Div": _div,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "HardSigmoid": _hard_sigmoid,
    "LayerNormalization": _layer_normalization,
    "LeakyRelu": _leaky_relu,
    "MaxPool": _max_pool,
    "ReduceMax": _reduce_max,
    "ReduceMean": _reduce_mean,
    "ReduceMin": _reduce_min,
    "Softmax": _softmax,
    "Abs": _elementwise(torch.abs),
    "Add": _elementwise(torch.add),
    "Equal": _elementwise(torch.eq),
    "Erf": _elementwise(torch.erf),
    "Exp": _elementwise(torch.exp),
    "Expand": _elementwise(lambda x, shape: x * torch.ones(whole(shape), dtype=x.dtype)),
    "HardSwish": _elementwise(lambda x: x * torch.clamp(x * (1 / 6) + 0.5, 0, 1)),
    "Identity": _elementwise(lambda x: x),
    "MatMul": _elementwise(torch.matmul),
    "Max": _elementwise(lambda *parts: functools.reduce(torch.maximum, parts)),
    "Min": _elementwise(lambda *parts: functools.reduce(torch.minimum, parts)),
    "Mul": _elementwise(torch.mul),
    "Neg": _elementwise(torch.neg),
    "Pow": _elementwise(lambda x, power: torch.pow(x, power.to(x.dtype))),
    "Reciprocal": _elementwise(torch.reciprocal),
    "Relu": _elementwise(torch.relu),
    "Round": _elementwise(torch.round),
    "Sigmoid": _elementwise(torch.sigmoid),
    "Sqrt": _elementwise(torch.sqrt),
    "Sub": _elementwise(torch.sub),
    "Tanh": _elementwise(torch.tanh),
    "Where": _elementwise(torch.where),
}
