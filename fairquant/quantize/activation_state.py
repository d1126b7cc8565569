"""The grids of a quantized model's activations, as the file of the model keeps them.

Keys ``activation/<point>/scale`` float32 and ``activation/<point>/zero_point`` int32, of shape () each; none where
ranges are dynamic. The header's ``activations`` holds what ``attach_activations`` was asked for (bits, scheme,
observer, momentum, percentile, points, dynamic) and ``names``, the points in the model's order. Observers are not kept:
they are needed to calibrate and to train, not to compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fairquant.errors import ArtifactError
from fairquant.quantize.activate import activation_quantizers, activation_settings, attach_activations, keep_points

Arrays = dict[str, npt.NDArray[Any]]


def activation_state(model: nn.Module) -> tuple[dict[str, Any], Arrays]:
    """Return the header's entry and the arrays of ``model``; both empty where activations are not quantized."""
    settings = activation_settings(model)
    if settings is None:
        return {}, {}
    arrays: Arrays = {}
    quantizers = activation_quantizers(model)
    for name, quantizer in quantizers.items():
        if quantizer.scale is not None and quantizer.zero_point is not None:
            arrays[f"activation/{name}/scale"] = quantizer.scale.cpu().numpy()
            arrays[f"activation/{name}/zero_point"] = quantizer.zero_point.cpu().numpy()
    return {**settings, "names": list(quantizers)}, arrays


def with_activation_state(
    model: nn.Module, header: Mapping[str, Any] | None, arrays: Mapping[str, npt.NDArray[Any]]
) -> nn.Module:
    """Return ``model`` with the activation quantizers that ``activation_state`` described; None leaves it as it is.

    Raises ``ArtifactError`` for points that are not the model's, and for values that are no grid; ``KeyError`` for a
    grid that is not there.
    """
    if not header:
        return model
    result = attach_activations(model, **{name: value for name, value in header.items() if name != "names"})
    keep_points(result, header["names"])
    quantizers = activation_quantizers(result)
    absent = [name for name in header["names"] if name not in quantizers]
    if absent:
        raise ArtifactError(f"activation points: got {', '.join(absent)}; allowed: points of the model")
    for name, quantizer in quantizers.items():
        if quantizer.dynamic:
            continue
        scale, zero_point = (np.array(arrays[f"activation/{name}/{part}"]) for part in ("scale", "zero_point"))
        try:
            quantizer.load_grid(torch.from_numpy(scale), torch.from_numpy(zero_point))
        except ArtifactError as error:
            raise ArtifactError(f"{name}: {error}") from None
    return result
