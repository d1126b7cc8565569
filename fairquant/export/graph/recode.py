"""Codes of a layer on other step sizes: with batch norm folded in, and fit for an integer bias.

With a factor f for each output channel, Δ · level · f = (Δ·|f|) · (±level): the codes are kept, or mirrored where
f < 0; where f = 0, or Δ·|f| is no normal number, the channel is pruned.

An integer bias is counted in s = Δ_activations · Δ_weights and must fit into 30 bits, beside a sum of products that
takes no more. Where a channel's weights are so small against its bias that it does not (batch norm that has learned to
switch a channel off), its step size grows to the least that fits, and its codes are rounded to it. What that changes of
an output is below n · 255 / 2 · 2^-30 of the bias, n weights in a channel (2.8e-4 of it for 2,304), where 8 bits round
it to 1/255 at best.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fairquant.export.codes import CodedLayer

LARGEST_BIAS = 2**30
LARGEST_CODE = 255
TINY = float(np.finfo(np.float32).tiny)

Doubles = npt.NDArray[np.float64]
Levels = npt.NDArray[np.int32]


def folded(layer: CodedLayer, factor: Doubles | None) -> CodedLayer:
    """Return a layer on symmetric grids, one a channel, with ``factor`` (out,) folded in; None: 1.

    >>> bits, codes, none = np.array(3, np.uint8), np.array([[0, 3], [6, 4]], np.uint16), np.empty(0, np.float32)
    >>> half = np.full((1, 1), 0.5, np.float32)
    >>> layer = CodedLayer("fc", (2, 2), bits, "symmetric", codes, half, None, none, None, none)
    >>> folded(layer, np.array([-2.0, 0.0])).weight().tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    factor = np.ones(layer.shape[0]) if factor is None else factor
    delta = np.broadcast_to(layer.delta[:, 0], layer.shape[:1]).astype(np.float64) * np.abs(factor)
    sign = np.where(delta < TINY, 0, np.sign(factor)).astype(np.int32)
    return recoded(layer, layer.levels() * _of_rows(sign, layer), np.where(delta < TINY, 1.0, delta))


def recoded(layer: CodedLayer, levels: Levels, delta: Doubles) -> CodedLayer:
    """Return ``layer`` with other ``levels``, no larger than before, and step sizes ``delta`` (out,), kept in float32.

    Channels without a level but 0 get 0 bits; channels of 1 bit that hold a 0 get 2.
    """
    rows = levels.reshape(layer.shape[0], -1)
    bits = np.broadcast_to(layer.bits, layer.shape[:1]).copy()
    bits[(bits == 1) & (rows == 0).any(axis=1)] = 2
    bits[~rows.any(axis=1)] = 0
    middle = (1 << np.clip(bits.astype(np.int32) - 1, 0, 16)) - 1
    widths = _of_rows(bits, layer)
    codes = np.where(widths == 1, levels > 0, levels + _of_rows(middle, layer))
    codes = np.where(widths == 0, 0, codes).astype(np.uint16)
    return replace(layer, bits=bits, codes=codes, delta=delta.astype(np.float32).reshape(-1, 1))


def fit_for_bias(layer: CodedLayer, bias: Doubles, scales: Doubles) -> CodedLayer | None:
    """Return a ``folded`` layer whose ``bias`` (out,) can be counted in Δ·s for each of ``scales`` s of its inputs.

    Returns None where a sum of products may need more than 30 bits.
    """
    levels = layer.levels()
    rows = np.abs(levels.reshape(layer.shape[0], -1)).astype(np.int64)
    if (rows.sum(axis=1) * LARGEST_CODE).max(initial=0) >= LARGEST_BIAS:
        return None
    least = np.maximum(np.abs(bias) / LARGEST_BIAS, 2 * TINY) / scales.min()
    old = layer.delta[:, 0].astype(np.float64)
    bare = ~rows.any(axis=1)
    grows = ~bare & (old < least)
    delta = np.where(bare, 2 * least, np.where(grows, least * (1 + 1e-6), old))
    shrunk = np.where(_of_rows(grows, layer), np.rint(levels * _of_rows(old / delta, layer)), levels)
    return recoded(layer, shrunk.astype(np.int32), delta)


def integer_bias(layer: CodedLayer, bias: Doubles, scale: np.float32) -> tuple[Levels, npt.NDArray[np.float32]]:
    """Return ``bias`` (out,) in whole multiples of scale · Δ, int32, and those step sizes, float32 (out,)."""
    steps = (scale * layer.delta[:, 0]).astype(np.float32)
    return np.rint(bias / steps.astype(np.float64)).astype(np.int32), steps


def _of_rows(values: npt.NDArray[Any], layer: CodedLayer) -> npt.NDArray[Any]:
    """Return one value per output channel in a shape that is broadcast along the others of the weight."""
    return values.reshape(-1, *(1,) * (len(layer.shape) - 1))
