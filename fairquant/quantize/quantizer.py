"""A layer's weight quantizer: widths, step sizes, when those are measured anew, and the copy kept for evaluation.

Step sizes: one per layer for per-tensor widths, one per out channel for per-channel widths, one per out channel and
width for per-parameter widths (``absmax`` and ``percentile`` share the channel's clipping range there).
"""

from __future__ import annotations

import weakref
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fairquant import plugins
from fairquant.allocate.bitmap import Granularity
from fairquant.errors import ArtifactError
from fairquant.quantize.fake_quant import UNTOUCHED, widths_present
from fairquant.quantize.layout import Layout, columns_of, identity, readable, table_shape
from fairquant.quantize.rows import Workspace


class WeightQuantizer(nn.Module):
    """Parametrization of a weight: full-precision weight → fake-quantized weight.

    Attributes:
        bits: uint8 widths of shape () | (out,) | the weight's.
        scale: the table of step sizes, flat: a buffer ("epoch"), a parameter ("learned") or None ("step").
    """

    bits: Tensor
    scale: Tensor | None
    _prepared: tuple[tuple[object, ...], Layout] | None
    _kept: tuple[weakref.ref[Tensor], tuple[object, ...], Tensor] | None

    def __init__(
        self, weight: Tensor, bits: Tensor, *, method: str, percentile: float = 100.0, table: Tensor | None = None
    ) -> None:
        """Measure the step sizes of ``weight`` (out, …) by ``method``, or take them from ``table``.

        Raises ``ArtifactError`` for a table of another shape, or with values that are not positive and finite.
        """
        super().__init__()
        self.method, self.percentile = method, percentile
        self.register_buffer("bits", bits.to(weight.device))
        self.untouched = bool((bits == UNTOUCHED).all())
        self._prepared = self._kept = None
        self._workspace = Workspace()
        refresh = self._plugin.REFRESH
        if table is not None:
            _check_table(table, table_shape(weight, bits))
        if refresh == "step":
            self.scale = None
            return
        start = (self._measure(weight.detach()) if table is None else table).reshape(-1).to(weight, copy=True)
        if refresh == "learned":
            self.scale = nn.Parameter(start)
        else:
            self.register_buffer("scale", start)

    @property
    def granularity(self) -> Granularity:
        """The granularity of the widths: per_tensor, per_channel or per_param."""
        if self.bits.dim() == 0:
            return "per_tensor"
        return "per_channel" if self.bits.dim() == 1 else "per_param"

    def forward(self, weight: Tensor) -> Tensor:
        """Return the fake-quantized ``weight``; in evaluation without gradients, the copy made at the first call."""
        if self.untouched:
            return weight
        if self.training or (torch.is_grad_enabled() and weight.requires_grad) or weight.is_inference():
            return self._quantize(weight)
        key = (identity(weight), identity(self.bits), None if self.scale is None else identity(self.scale))
        if self._kept is None or self._kept[0]() is not weight or self._kept[1] != key:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = (weakref.ref(weight), key, self._quantize(weight))
        return self._kept[2]

    @torch.no_grad()
    def refresh(self, weight: Tensor) -> None:
        """Measure the step sizes anew if the method does so every epoch; otherwise do nothing."""
        if self._plugin.REFRESH == "epoch" and self.scale is not None:
            self.scale.copy_(self._measure(weight).reshape(-1))

    @torch.no_grad()
    def table(self, weight: Tensor) -> Tensor:
        """Return the step sizes in use for ``weight``: (out | 1, columns).

        Columns are the widths present, ascending, where they differ within a channel; else there is one. 1 stands
        where nothing is rounded: at 0 and 32 bits, and where a channel has no weight of that width.
        """
        return self._measure(weight) if self.scale is None else readable(self.scale, len(columns_of(self.bits)))

    @property
    def _plugin(self) -> ModuleType:
        return plugins.load("scale", self.method)

    def _quantize(self, weight: Tensor) -> Tensor:
        layout, plugin = self._layout_of(weight), self._plugin
        workspace = self._workspace if self.training and torch.is_grad_enabled() else None
        if self.scale is None:
            whole = layout.whole and not layout.widths.all_untouched
            measured = layout.measured(plugin, self.percentile)
            step_size = layout.looked_up(self._measure(weight.detach())) if whole else measured
            return layout.apply(weight, step_size, clips=getattr(plugin, "CLIPS", True), workspace=workspace)
        if plugin.REFRESH == "learned":
            return layout.apply_learned(weight, self.scale, workspace=workspace)
        return layout.apply(
            weight, layout.looked_up(readable(self.scale, len(layout.columns))), clips=True, workspace=workspace
        )

    def _measure(self, weight: Tensor) -> Tensor:
        return self._layout_of(weight).table(weight, self._plugin, self.percentile)

    def _layout_of(self, weight: Tensor) -> Layout:
        """Return the prepared widths; made anew when the widths or the weight's place in memory change."""
        key = (weight.stride(), weight.dtype, weight.device, identity(self.bits))
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = (key, Layout.of(weight, self.bits))
        return self._prepared[1]

    def train(self, mode: bool = True) -> WeightQuantizer:
        """Set the mode; each mode drops the memory of the other."""
        if mode:
            self._kept = None
        else:
            self._workspace = Workspace()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is prepared or kept: a copy makes its own."""
        return self.__dict__ | {"_prepared": None, "_kept": None, "_workspace": Workspace()}

    def extra_repr(self) -> str:
        """Say how the weight is quantized."""
        widths = ", ".join(str(int(width)) for width in widths_present(self.bits))
        return f"bits={{{widths}}}, granularity={self.granularity}, scale={self.method}"


def _check_table(table: Tensor, shape: tuple[int, int]) -> None:
    if tuple(table.shape) != shape:
        raise ArtifactError(f"step sizes: got shape {tuple(table.shape)}; allowed: {shape} (channels, widths)")
    if not bool(torch.isfinite(table).all() and (table > 0).all()):
        raise ArtifactError("step sizes: got a value that is not positive and finite; allowed: positive numbers")
