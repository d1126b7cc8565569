"""A quantized layer as it is stored: one unsigned integer per weight, and what turns those into numbers again.

With b bits and step size Δ the stored code s stands for the weight

    symmetric:  Δ · (s − M), M = 2^(b−1) − 1      asymmetric:  Δ · (s − z), z the zero point
    1 bit:      Δ where s = 1, −Δ where s = 0      0 bits:      0, nothing is stored (s = 0)
    codebook:   the s-th value of the codebook     32 bits:     the float itself (s = 0)

``CodedLayer.weight`` computes exactly what ``fairquant.quantize.fake_quant`` does, in float32: the fake-quantized
weight bit for bit, but for the sign of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fairquant.allocate.bitmap import Per, Scheme
from fairquant.allocate.books import books_of
from fairquant.errors import UserError
from fairquant.models.layers import Layer, quantizable_layers, weight_parameter
from fairquant.quantize.attach import codebooks, quantizers
from fairquant.quantize.codebook import CodebookQuantizer
from fairquant.quantize.quantizer import WeightQuantizer

Floats = npt.NDArray[np.float32]
UNTOUCHED = 32
_SHIFT = np.array([0, 1, *(2 ** (width - 1) - 1 for width in range(2, 17)), *[0] * 16], np.int32)
"""What is taken off a symmetric code of each width (a code of 1 bit is doubled before); nothing at 0 and 32."""


@dataclass(frozen=True, eq=False)
class CodedLayer:
    """One layer's weight of ``shape`` (out, …), C order throughout.

    Attributes:
        name: of the layer.
        shape: of the weight.
        bits: uint8 widths of shape () | (out,) | the weight's.
        scheme: symmetric | asymmetric.
        codes: uint16, the weight's shape: s above.
        delta: float32 (out | 1, columns), the step sizes: one column, or one per width present (ascending) where widths
            differ within a channel; 1 where nothing is rounded. Empty (0, 0) where there are codebooks.
        zero: int32 of ``delta``'s shape where asymmetric, else None.
        floats: float32 (k,), the weights of 32 bits in C order.
        codebook: channel | tensor where there are codebooks, else None.
        centroids: float32, flat: the codebooks in the order of ``allocate.books.books_of``; empty without.
    """

    name: str
    shape: tuple[int, ...]
    bits: npt.NDArray[np.uint8]
    scheme: Scheme
    codes: npt.NDArray[np.uint16]
    delta: Floats
    zero: npt.NDArray[np.int32] | None
    floats: Floats
    codebook: Per | None
    centroids: Floats

    @property
    def widths(self) -> npt.NDArray[np.uint8]:
        """The width of every weight: a read-only view of the weight's shape."""
        trailing = (1,) * (len(self.shape) - self.bits.ndim)
        return np.broadcast_to(self.bits.reshape(self.bits.shape + trailing), self.shape)

    def levels(self) -> npt.NDArray[np.int32]:
        """Return the signed whole numbers that step sizes multiply, the weight's shape; 0 at 0 and 32 bits.

        Raises ``UserError`` where there are codebooks instead of step sizes.
        """
        if self.codebook is not None:
            raise UserError(f"layer {self.name}: got codebooks; allowed: weights on a grid")
        widths = _spread(self.bits, len(self.shape))
        shift = _SHIFT[widths]
        if self.zero is not None:
            shift = np.where((widths > 1) & (widths < UNTOUCHED), self._of_each(self.zero), shift)
        levels = self.codes.astype(np.int32)  # alone of the weight's size where widths are shared
        levels <<= widths == 1
        levels -= shift
        return levels

    def weight(self) -> Floats:
        """Return the weight: float32 of ``shape``."""
        if self.codebook is not None:
            result = self._looked_up()
        else:
            result = self.levels().astype(np.float32) * self._of_each(self.delta)
        if len(self.floats):
            result[self.widths == UNTOUCHED] = self.floats
        return result

    def _of_each(self, table: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what each weight finds in a table (out | 1, columns), broadcastable to the weight's shape."""
        if table.shape[1] == 1:
            return table.reshape(-1, *(1,) * (len(self.shape) - 1))
        present = np.flatnonzero(np.bincount(self.bits.reshape(-1)))
        place = np.zeros(UNTOUCHED + 1, np.intp)
        place[present] = np.arange(len(present))
        return np.take_along_axis(table, place[self.bits.reshape(len(self.bits), -1)], axis=1).reshape(self.shape)

    def _looked_up(self) -> Floats:
        assert self.codebook is not None
        offset, start = np.full(self.shape[0], len(self.centroids)), 0
        for book in books_of(self.bits, self.shape, self.codebook):
            offset[book.channels] = start
            start += book.values
        table = np.append(self.centroids, np.float32(0))
        places = self.codes.astype(np.int64) + offset.reshape(-1, *(1,) * (len(self.shape) - 1))
        result: Floats = table[places]
        return result


def coded_layers(model: nn.Module) -> dict[str, CodedLayer]:
    """Return the layers of a quantized model as they are stored, by name, in module order.

    Raises ``UserError`` for a model without quantizers.
    """
    on_grid, in_books = quantizers(model), codebooks(model)
    if not on_grid and not in_books:
        raise UserError("model: got a model without quantizers; allowed: what the quantize stage writes")
    layers = quantizable_layers(model)
    return {
        name: _of_codebook(name, layers[name], in_books[name])
        if name in in_books
        else _of_grid(name, layers[name], on_grid[name])
        for name in layers
    }


@torch.no_grad()
def _of_grid(name: str, layer: Layer, quantizer: WeightQuantizer) -> CodedLayer:
    latent = weight_parameter(layer)
    weight = layer.weight.detach().cpu().contiguous().float().numpy()
    delta = quantizer.table(latent).detach().cpu().float().numpy()
    found = quantizer.zero_points(latent)
    zero = None if found is None else found.cpu().numpy()
    bits = quantizer.bits.cpu().numpy()
    bare = CodedLayer(
        name, weight.shape, bits, quantizer.scheme, np.zeros(weight.shape, np.uint16), delta, zero,
        weight[np.broadcast_to(_spread(bits, weight.ndim), weight.shape) == UNTOUCHED], None, np.empty(0, np.float32),
    )  # fmt: skip
    widths = bare.widths.astype(np.int32)
    levels = np.rint(weight / bare._of_each(delta)).astype(np.int32)  # a whole multiple of Δ, but for one rounding
    middle = (1 << np.clip(widths - 1, 0, 16)) - 1 if zero is None else bare._of_each(zero)
    codes = np.where(widths == 1, levels > 0, levels + middle)
    codes = np.where((widths == 0) | (widths == UNTOUCHED), 0, codes).astype(np.uint16)
    return CodedLayer(name, weight.shape, bits, quantizer.scheme, codes, delta, zero, bare.floats, None, bare.centroids)


@torch.no_grad()
def _of_codebook(name: str, layer: Layer, quantizer: CodebookQuantizer) -> CodedLayer:
    latent = weight_parameter(layer).detach().cpu().contiguous().float().numpy()
    bits = quantizer.bits.cpu().numpy()
    return CodedLayer(
        name, latent.shape, bits, "symmetric", quantizer.codes.cpu().contiguous().numpy().astype(np.uint16),
        np.empty((0, 0), np.float32), None,
        latent[np.broadcast_to(_spread(bits, latent.ndim), latent.shape) == UNTOUCHED], quantizer.per,
        quantizer.centroids.detach().cpu().float().numpy(),
    )  # fmt: skip


def _spread(bits: npt.NDArray[np.uint8], dimensions: int) -> npt.NDArray[np.uint8]:
    return bits.reshape(bits.shape + (1,) * (dimensions - bits.ndim))
