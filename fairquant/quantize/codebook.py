"""Weights as codes into codebooks: k-means instead of a grid, the centroids trainable (Deep Compression).

Codes are found once, by k-means of each codebook's weights (``_kmeans``), and stay; in fine-tuning a centroid's
gradient is the sum over the weights that share it (Han, Mao & Dally 2016, arXiv 1510.00149, section 3.3, equation 3).
Channels of 0 bits are pruned, those of 32 bits are the full-precision weight, which goes on training where the others
do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairquant.allocate.bitmap import Granularity, Per
from fairquant.allocate.books import Book, books_of
from fairquant.errors import ArtifactError
from fairquant.quantize._kmeans import kmeans
from fairquant.quantize.fake_quant import UNTOUCHED, widths_present
from fairquant.quantize.kept import KeptWeight
from fairquant.quantize.rows import Workspace, as_rows, blocks, from_rows, inner_order


class CodebookQuantizer(KeptWeight):
    """Parametrization of a weight: the centroids its codes point at.

    Attributes:
        bits: uint8 widths of shape () | (out,).
        codes: uint8, the weight's shape; 0 in channels without a codebook.
        centroids: a parameter, flat: the codebooks one after the other, in the order of ``books``.
        books: the codebooks.
        per: channel | tensor, which weights share one.
    """

    bits: Tensor
    codes: Tensor
    offset: Tensor
    """(out, 1), where a channel's codebook begins; channels without one point behind the last centroid, at 0."""
    open: Tensor
    """Channels of 32 bits."""

    def __init__(
        self,
        weight: Tensor,
        bits: Tensor,
        *,
        per: Per,
        iterations: int = 50,
        given: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Cluster ``weight`` (out, …) in at most so many ``iterations``, or take ``given`` (codes, centroids).

        Raises ``UserError`` for a width without a codebook, ``ArtifactError`` for codes or centroids that do not fit.
        """
        super().__init__()
        self.per: Per = per
        self.books = books_of(bits.cpu().numpy(), tuple(weight.shape), per)
        self.untouched = bool((bits == UNTOUCHED).all())
        self.register_buffer("bits", bits.to(weight.device))
        codes, centroids = _cluster(weight.detach(), self.books, iterations) if given is None else given
        if given is not None:
            _check(codes, centroids, tuple(weight.shape), self.books)
        offset, start = torch.full((len(weight), 1), len(centroids)), 0
        for book in self.books:
            offset[book.channels] = start
            start += book.values
        self.register_buffer("codes", _laid_out(codes, weight))
        self.register_buffer("offset", offset.to(weight.device), persistent=False)
        channels = bits.expand(len(weight)) if bits.dim() == 0 else bits
        self.register_buffer("open", (channels == UNTOUCHED).nonzero()[:, 0].to(weight.device), persistent=False)
        self.centroids = nn.Parameter(centroids.to(weight), requires_grad=len(centroids) > 0)

    @property
    def granularity(self) -> Granularity:
        """The granularity of the widths: per_tensor or per_channel."""
        return "per_tensor" if self.bits.dim() == 0 else "per_channel"

    @property
    def trains_weight(self) -> bool:
        """Whether some channel is the full-precision weight itself."""
        return len(self.open) > 0

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight the codes stand for; in evaluation without gradients, the copy made at the first call."""
        if self.untouched:
            return weight
        learns = weight.requires_grad or self.centroids.requires_grad
        return self.kept(weight, self._look_up, self.codes, self.centroids, learns=learns)

    def _look_up(self, weight: Tensor) -> Tensor:
        places = _Places(self.codes, self.offset, self.open)
        result: Tensor = _LookUp.apply(self.centroids, weight, places, self.workspace)
        return result

    def extra_repr(self) -> str:
        """Say how the weight is quantized."""
        widths = ", ".join(str(width) for width in widths_present(self.bits))
        return f"bits={{{widths}}}, granularity={self.granularity}, codebooks={len(self.books)} (per {self.per})"


@dataclass(frozen=True)
class _Places:
    """Where each weight finds its value: ``codes`` (out, …), ``offset`` (out, 1), and the ``open`` channels."""

    codes: Tensor
    offset: Tensor
    open: Tensor

    def by_block(self, order: tuple[int, ...]) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks of rows and the flat positions in the table of centroids of their weights."""
        rows = as_rows(self.codes, order)
        for block in blocks(*rows.shape, on_cpu=rows.is_cpu):
            yield block, rows[block].long().add_(self.offset[block]).view(-1)


class _LookUp(torch.autograd.Function):
    """Block by block; keeps nothing for the backward pass but references to the codes."""

    @staticmethod
    def forward(ctx: Any, centroids: Tensor, weight: Tensor, places: _Places, workspace: Workspace | None) -> Tensor:
        """Return centroids[codes], laid out in memory as ``weight`` is."""
        ctx.places, ctx.order, ctx.number = places, inner_order(weight), len(centroids)
        rows = as_rows(weight, ctx.order)
        table = torch.cat([centroids, centroids.new_zeros(1)])
        out = torch.empty_like(rows) if workspace is None else workspace.take(rows)
        for block, position in places.by_block(ctx.order):
            torch.index_select(table, 0, position, out=out[block].view(-1))
        if len(places.open):
            out[places.open] = rows[places.open]
        return from_rows(out, weight, ctx.order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Return Σ over the weights that share a centroid, and for the weight what reaches its open channels."""
        of_centroids = of_weight = None
        rows = as_rows(gradient, ctx.order)
        if ctx.needs_input_grad[0]:
            total = torch.zeros(ctx.number + 1, dtype=torch.float64, device=gradient.device)
            for block, position in ctx.places.by_block(ctx.order):
                part = torch.zeros(len(total), dtype=gradient.dtype, device=gradient.device)
                total += part.scatter_add_(0, position, rows[block].reshape(-1))  # float64 would take fresh memory
            of_centroids = total[:-1].to(gradient.dtype)
        if ctx.needs_input_grad[1]:
            passed = torch.zeros_like(rows)
            passed[ctx.places.open] = rows[ctx.places.open]
            of_weight = from_rows(passed, gradient, ctx.order)
        return of_centroids, of_weight, None, None


def _cluster(weight: Tensor, books: tuple[Book, ...], iterations: int) -> tuple[Tensor, Tensor]:
    """Return the codes (out, …) and the flat centroids; codebooks of one size are clustered together."""
    rows = weight.cpu().reshape(len(weight), -1)
    codes = torch.zeros(rows.shape, dtype=torch.uint8)
    found: list[Tensor] = [torch.empty(0)] * len(books)
    alike: dict[tuple[int, int], list[int]] = {}
    for number, book in enumerate(books):
        alike.setdefault((len(book.channels), book.values), []).append(number)
    for (channels, values), numbers in alike.items():
        of_books = [torch.from_numpy(books[number].channels) for number in numbers]
        shared = rows[torch.cat(of_books)].reshape(len(numbers), -1)
        centroids = kmeans(shared, values, iterations=iterations)
        codes[torch.cat(of_books)] = nearest(shared, centroids).reshape(-1, channels, rows.shape[1]).flatten(0, 1)
        for number, row in zip(numbers, centroids, strict=True):
            found[number] = row
    return codes.reshape(weight.shape), torch.cat(found) if found else weight.new_empty(0)


def nearest(rows: Tensor, centroids: Tensor) -> Tensor:
    """Return the code of the nearest of ascending ``centroids`` (r, k ≤ 256) for weights (r, n): uint8 (r, n).

    >>> nearest(torch.tensor([[0.9, -1.0, 0.2]]), torch.tensor([[-1.0, 0.0, 1.0]])).tolist()
    [[2, 0, 1]]
    """
    between = centroids.double()
    between = (between[:, 1:] + between[:, :-1]) / 2
    return torch.searchsorted(between, rows.double()).to(torch.uint8)


def _laid_out(codes: Tensor, weight: Tensor) -> Tensor:
    """Return ``codes`` in memory as ``weight`` is."""
    placed = torch.empty_like(weight, dtype=torch.uint8, requires_grad=False)
    return placed.copy_(codes)


def _check(codes: Tensor, centroids: Tensor, shape: tuple[int, ...], books: tuple[Book, ...]) -> None:
    """Raise ``ArtifactError`` unless codes and centroids are those of ``books``."""
    if tuple(codes.shape) != shape or codes.dtype != torch.uint8:
        raise ArtifactError(f"codes: got {codes.dtype} {tuple(codes.shape)}; allowed: uint8 {shape}")
    wanted = sum(book.values for book in books)
    if tuple(centroids.shape) != (wanted,) or not bool(torch.isfinite(centroids).all()):
        raise ArtifactError(f"centroids: got {tuple(centroids.shape)}; allowed: {wanted} finite values")
    for book in books:
        largest = int(codes[torch.from_numpy(book.channels)].max())
        if largest >= book.values:
            raise ArtifactError(f"codes: got {largest} of a codebook of {book.values}; allowed: below {book.values}")
