"""Widths and grids of one layer, laid out in the order its weight lies in memory.

Step sizes, and zero points with them, are a table (out | 1, columns): one column, or one per width present where the
widths of a channel differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

import torch
from torch import Tensor

from fairquant.allocate.bitmap import Scheme
from fairquant.quantize.fake_quant import (
    NO_GRID,
    UNTOUCHED,
    Grid,
    GridOf,
    Plan,
    Widths,
    apply_plan,
    prepare_widths,
    widths_present,
)
from fairquant.quantize.rows import Workspace, as_rows, blocks, inner_order, part


def identity(tensor: Tensor) -> tuple[object, ...]:
    """Return what changes when the values of ``tensor`` do: its memory and its version."""
    version = -1 if tensor.is_inference() else tensor._version
    return (tensor.data_ptr(), version, tensor.stride(), tensor.dtype, tensor.device)


@dataclass(frozen=True)
class Layout:
    """One layer's widths, ready for its weight.

    Attributes:
        order: inner dimensions of the weight, outermost in memory first.
        widths: prepared widths, (out | 1, n | 1).
        columns: the widths that have a column of the table each; (0,) stands for "all in one".
        slot: uint8 (out, n), the column each weight uses; None where there is one column.
        whole: one grid for the whole layer.
        n_weights: of the layer.
    """

    order: tuple[int, ...]
    widths: Widths
    columns: tuple[int, ...]
    slot: Tensor | None
    whole: bool
    n_weights: int

    @classmethod
    def of(cls, weight: Tensor, bits: Tensor, scheme: Scheme = "symmetric") -> Layout:
        """Lay out ``bits`` of shape () | (out,) | the weight's for ``weight`` (out, …)."""
        order = inner_order(weight)
        present = columns_of(bits)
        bits = bits.to(weight.device)
        if len(present) > 1:
            rows = as_rows(bits, order)
            lookup = torch.zeros(UNTOUCHED + 1, dtype=torch.uint8)
            lookup[list(present)] = torch.arange(len(present), dtype=torch.uint8)
            slot = lookup.to(weight.device)[rows.long()]
        else:
            rows, slot = bits.reshape(bits.shape[0] if bits.dim() else 1, -1)[:, :1], None
        return cls(
            order, prepare_widths(rows, weight.dtype, scheme=scheme), present, slot, bits.dim() == 0, weight.numel()
        )

    def measured(self, plugin: ModuleType, percentile: float) -> GridOf:
        """Return a function that measures the grids of a block of rows."""
        return lambda weight, block: measure(plugin, weight, self.widths.block(block), percentile)

    def table(self, weight: Tensor, plugin: ModuleType, percentile: float) -> Grid:
        """Measure the table (out | 1, columns) of ``weight``; Δ = 1, z = 0 where a channel has no weight of a width."""
        rows = as_rows(weight, self.order)
        if self.whole:
            return measure(plugin, rows.reshape(1, -1), self.widths, percentile)
        grid_of = self.measured(plugin, percentile)
        parts = []
        for block in blocks(*rows.shape, on_cpu=weight.is_cpu):
            delta, zero = grid_of(rows[block], block)
            if self.slot is not None:
                slot = self.slot[block].long()
                delta = delta.new_ones(len(slot), len(self.columns)).scatter_(1, slot, delta)
                zero = None if zero is None else torch.zeros_like(delta).scatter_(1, slot, zero)
            parts.append(Grid(delta, zero))
        zeros = [zero for _, zero in parts if zero is not None]
        return Grid(torch.cat([delta for delta, _ in parts]), torch.cat(zeros) if zeros else None)

    def looked_up(self, table: Grid) -> GridOf:
        """Return a function that reads the grids of a block of rows from ``table``."""
        delta, zero = table
        if zero is None:
            return lambda _, block: Grid(self._look_up(delta, block))
        return lambda _, block: Grid(self._look_up(delta, block), self._look_up(zero, block))

    def _look_up(self, values: Tensor, block: slice) -> Tensor:
        """Return what the weights of a block find in a table of ``values``."""
        return part(values, block) if self.slot is None else values[block].gather(1, self.slot[block].long())

    def apply(self, weight: Tensor, grid_of: GridOf, *, clips: bool, workspace: Workspace | None) -> Tensor:
        """Fake-quantize ``weight`` with fixed grids."""
        return apply_plan(weight, Plan(self.widths, grid_of, clips, workspace=workspace))

    def apply_learned(self, weight: Tensor, scale: Tensor, *, workspace: Workspace | None) -> Tensor:
        """Fake-quantize ``weight`` with the learned table ``scale`` (flat); its gradient is scaled as LSQ does."""
        table = readable(scale, len(self.columns))
        factor = self.gradient_factor

        def add(gradient: Tensor, total: Tensor, block: slice) -> None:
            sums = total.view(-1, len(self.columns))
            if self.whole:
                sums.addcmul_(gradient.sum(), factor)
            elif self.slot is None:
                sums[block].addcmul_(gradient.sum(1, keepdim=True), factor[block])
            else:
                new = torch.zeros_like(sums[block]).scatter_add_(1, self.slot[block].long(), gradient)
                sums[block].addcmul_(new, factor[block])

        return apply_plan(weight, Plan(self.widths, self.looked_up(Grid(table)), True, add, workspace), scale)

    @cached_property
    def gradient_factor(self) -> Tensor:
        """1/√(N·M) for each entry of the table, (out | 1, columns): N weights share it, M = 1 at 1 bit."""
        largest = self.widths.largest
        if self.slot is None:
            return (largest.clamp_min(1) * (self.n_weights / len(largest))).rsqrt()
        ones = torch.ones(self.slot.shape, dtype=largest.dtype, device=largest.device)
        count = ones.new_zeros(len(ones), len(self.columns)).scatter_add_(1, self.slot.long(), ones)
        tops = prepare_widths(torch.tensor([self.columns], device=largest.device), largest.dtype).largest
        return (tops.clamp_min(1) * count.clamp_min(1)).rsqrt()


def columns_of(bits: Tensor) -> tuple[int, ...]:
    """Return the widths that need a column each: those present where they may differ within a channel, else (0,)."""
    present = widths_present(bits) if bits.dim() > 1 else ()
    return present if len(present) > 1 else (0,)


def readable(scale: Tensor, columns: int) -> Tensor:
    """Return the flat ``scale`` as a table of positive step sizes without gradient."""
    return scale.detach().clamp_min(torch.finfo(scale.dtype).tiny).view(-1, columns)


def table_shape(weight: Tensor, bits: Tensor) -> tuple[int, int]:
    """Return the shape of the table of step sizes: (out | 1, columns)."""
    return (weight.shape[0] if bits.dim() else 1, len(columns_of(bits)))


def measure(plugin: ModuleType, weight: Tensor, widths: Widths, percentile: float) -> Grid:
    """Return the grids (r, n | 1) of rows (r, n): the plug-in's, Δ = mean |w| at 1 bit, 1 at 0 and 32 bits."""
    zero: Tensor | None = None
    if widths.scheme == "symmetric":
        delta: Tensor = plugin.make_scale(weight, widths.largest, percentile=percentile)
    else:
        delta, zero = plugin.make_grid(weight, widths.largest, percentile=percentile)
    if widths.sign is not None:
        sizes = weight.abs()
        one_width = widths.sign.shape[1] == 1
        total = (sizes if one_width else sizes.mul_(widths.sign)).sum(1, keepdim=True, dtype=torch.float64)
        count = weight.shape[1] if one_width else widths.sign.sum(1, keepdim=True).clamp_min(1)
        mean = (total / count).to(delta.dtype)
        delta = torch.where(widths.sign, mean.clamp_min(torch.finfo(delta.dtype).tiny), delta)
    for mask in (widths.pruned, widths.untouched):
        if mask is not None:
            delta = delta.masked_fill(mask, 1.0)
    return Grid(delta, zero if zero is None else zero.masked_fill(widths.largest == NO_GRID, 0.0))
