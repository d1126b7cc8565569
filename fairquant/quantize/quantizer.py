"""A layer's weight quantizer: widths, grids, when those are measured anew, and the copy kept for evaluation.

Step sizes: one per layer for per-tensor widths, one per out channel for per-channel widths, one per out channel and
width for per-parameter widths (``absmax`` and ``percentile`` share the channel's clipping range there). In the
asymmetric scheme each has a zero point, which is measured with it and whenever it is.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fairquant import plugins
from fairquant.allocate.bitmap import Granularity, Scheme
from fairquant.errors import ArtifactError, UserError
from fairquant.quantize.fake_quant import NO_GRID, UNTOUCHED, Grid, prepare_widths, widths_present
from fairquant.quantize.kept import KeptWeight
from fairquant.quantize.layout import Layout, columns_of, identity, readable, table_shape


class WeightQuantizer(KeptWeight):
    """Parametrization of a weight: full-precision weight → fake-quantized weight.

    Attributes:
        bits: uint8 widths of shape () | (out,) | the weight's.
        scale: the table of step sizes, flat: a buffer ("epoch"), a parameter ("learned") or None ("step").
        zero_point: int32, the zero points of ``scale``; None where there are none or they are not kept.
        before: what the weight goes through before it is quantized, or None.
    """

    bits: Tensor
    scale: Tensor | None
    zero_point: Tensor | None
    before: Callable[[Tensor], Tensor] | None
    _prepared: tuple[tuple[object, ...], Layout] | None

    def __init__(
        self,
        weight: Tensor,
        bits: Tensor,
        *,
        method: str,
        percentile: float = 100.0,
        scheme: Scheme = "symmetric",
        table: Tensor | None = None,
        zero_points: Tensor | None = None,
    ) -> None:
        """Measure the grids of ``weight`` (out, …) by ``method``, or take them from ``table`` and ``zero_points``.

        Raises ``ArtifactError`` for a table of another shape, or with values that are not positive and finite; for
        zero points outside 0…2^b − 1, without a table or a scheme that has them, or absent beside a table where it
        does; ``UserError`` for a method without asymmetric grids.
        """
        super().__init__()
        self.method, self.percentile, self.scheme = method, percentile, scheme
        if scheme != "symmetric" and not hasattr(self._plugin, "make_grid"):
            raise UserError(f"quantize.scale: got {method!r} with asymmetric weights; allowed: {_with_zero_points()}")
        self.register_buffer("bits", bits.to(weight.device))
        self.untouched = bool((bits == UNTOUCHED).all())
        self.before = self._prepared = None
        refresh = self._plugin.REFRESH
        if table is not None:
            _check_table(table, table_shape(weight, bits))
        _check_zero_points(zero_points, table, bits, scheme)
        self.register_buffer("zero_point", None)
        if refresh == "step":
            self.scale = None
            return
        grid = self._measure(weight.detach()) if table is None else Grid(table, zero_points)
        start = grid.delta.reshape(-1).to(weight, copy=True)
        if refresh == "learned":
            self.scale = nn.Parameter(start)
        else:
            self.register_buffer("scale", start)
        if grid.zero is not None:
            self.zero_point = grid.zero.reshape(-1).to(weight.device, torch.int32, copy=True)

    @property
    def granularity(self) -> Granularity:
        """The granularity of the widths: per_tensor, per_channel or per_param."""
        if self.bits.dim() == 0:
            return "per_tensor"
        return "per_channel" if self.bits.dim() == 1 else "per_param"

    def forward(self, weight: Tensor) -> Tensor:
        """Return the fake-quantized ``weight``; in evaluation without gradients, the copy made at the first call."""
        weight = self._given(weight)
        if self.untouched:
            return weight
        state = (self.bits, self.scale, self.zero_point)
        return self.kept(weight, self._quantize, *state, learns=weight.requires_grad)

    @torch.no_grad()
    def refresh(self, weight: Tensor) -> None:
        """Measure the grids anew if the method does so every epoch; otherwise do nothing."""
        if self._plugin.REFRESH == "epoch" and self.scale is not None:
            delta, zero = self._measure(self._given(weight))
            self.scale.copy_(delta.reshape(-1))
            if self.zero_point is not None and zero is not None:
                self.zero_point.copy_(zero.reshape(-1))

    @torch.no_grad()
    def table(self, weight: Tensor) -> Tensor:
        """Return the step sizes in use for ``weight``: (out | 1, columns).

        Columns are the widths present, ascending, where they differ within a channel; else there is one. 1 stands
        where nothing is rounded: at 0 and 32 bits, and where a channel has no weight of that width.
        """
        return self._grid(weight).delta

    @torch.no_grad()
    def zero_points(self, weight: Tensor) -> Tensor | None:
        """Return the zero points in use for ``weight``, int32 of ``table``'s shape; None in the symmetric scheme.

        0 stands where there is no grid: at 0, 1 and 32 bits, and where a channel has no weight of that width.
        """
        zero = self._grid(weight).zero
        return None if zero is None else zero.to(torch.int32)

    def _grid(self, weight: Tensor) -> Grid:
        """Return the table of grids in use for ``weight``."""
        if self.scale is None:
            return self._measure(self._given(weight))
        return self._stored(self.scale, len(columns_of(self.bits)))

    def _stored(self, scale: Tensor, columns: int) -> Grid:
        """Return the table of the kept ``scale``, which has ``columns``."""
        delta = readable(scale, columns)
        return Grid(delta, None if self.zero_point is None else self.zero_point.to(delta.dtype).view(delta.shape))

    def _given(self, weight: Tensor) -> Tensor:
        return weight if self.before is None else self.before(weight)

    @property
    def _plugin(self) -> ModuleType:
        return plugins.load("scale", self.method)

    def _quantize(self, weight: Tensor) -> Tensor:
        layout, plugin = self._layout_of(weight), self._plugin
        if self.scale is None:
            whole = layout.whole and not layout.widths.all_untouched
            measured = layout.measured(plugin, self.percentile)
            grid_of = layout.looked_up(self._measure(weight.detach())) if whole else measured
            return layout.apply(weight, grid_of, clips=getattr(plugin, "CLIPS", True), workspace=self.workspace)
        if plugin.REFRESH == "learned":
            return layout.apply_learned(weight, self.scale, workspace=self.workspace)
        grid_of = layout.looked_up(self._stored(self.scale, len(layout.columns)))
        return layout.apply(weight, grid_of, clips=True, workspace=self.workspace)

    def _measure(self, weight: Tensor) -> Grid:
        return self._layout_of(weight).table(weight, self._plugin, self.percentile)

    def _layout_of(self, weight: Tensor) -> Layout:
        """Return the prepared widths; made anew when the widths or the weight's place in memory change."""
        key = (weight.stride(), weight.dtype, weight.device, identity(self.bits))
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = (key, Layout.of(weight, self.bits, self.scheme))
        return self._prepared[1]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is prepared or kept: a copy makes its own."""
        return super().__getstate__() | {"_prepared": None}

    def extra_repr(self) -> str:
        """Say how the weight is quantized."""
        widths = ", ".join(str(int(width)) for width in widths_present(self.bits))
        scheme = "" if self.scheme == "symmetric" else f", scheme={self.scheme}"
        return f"bits={{{widths}}}, granularity={self.granularity}, scale={self.method}{scheme}"


def _check_table(table: Tensor, shape: tuple[int, int]) -> None:
    if tuple(table.shape) != shape:
        raise ArtifactError(f"step sizes: got shape {tuple(table.shape)}; allowed: {shape} (channels, widths)")
    if not bool(torch.isfinite(table).all() and (table > 0).all()):
        raise ArtifactError("step sizes: got a value that is not positive and finite; allowed: positive numbers")


def _check_zero_points(zero_points: Tensor | None, table: Tensor | None, bits: Tensor, scheme: Scheme) -> None:
    if zero_points is None:
        if table is not None and scheme != "symmetric":
            raise ArtifactError("zero points: got none with asymmetric step sizes; allowed: one for each step size")
        return
    if table is None or scheme == "symmetric":
        raise ArtifactError(f"zero points: got some with {scheme} weights; allowed: beside asymmetric step sizes")
    if zero_points.shape != table.shape:
        raise ArtifactError(f"zero points: got shape {tuple(zero_points.shape)}; allowed: {tuple(table.shape)}")
    columns = columns_of(bits)
    widths = torch.tensor([columns]) if len(columns) > 1 else bits.cpu().reshape(len(table), -1)[:, :1]
    largest = prepare_widths(widths, scheme=scheme).largest
    wrong = (zero_points.cpu() < 0) | (zero_points.cpu() > torch.where(largest == NO_GRID, 0.0, largest))
    if bool(wrong.any()):
        value = int(zero_points.cpu()[wrong][0])
        raise ArtifactError(f"zero points: got {value}; allowed: from 0 to 2^b - 1 at b bits, 0 at 0, 1 and 32 bits")


def _with_zero_points() -> str:
    """Return the names of the methods that make asymmetric grids."""
    return " | ".join(name for name in plugins.names("scale") if hasattr(plugins.load("scale", name), "make_grid"))
