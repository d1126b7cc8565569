"""Which layers each group needs: the layers' shares of each group's importance, layer × group [C].

With I_g(w) the importance of weight w to group g, the share of layer l is S_g(l) = Σ_{w in l} |I_g(w)| / Σ_w |I_g(w)|:
it sums to 1 over the layers, so that groups of unlike total importance can be compared. The second panel divides by
the mean over groups: above 1, a group depends on the layer more than the others do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fairquant.errors import UserError
from fairquant.importance.maps import ImportanceMaps
from fairquant.report.plots import new_figure, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Shares = npt.NDArray[np.float64]
FURTHEST = 2.0
"""Colours end at a factor of 2^±2."""
WRITTEN = 14
"""Up to so many groups the numbers are written into the cells."""


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """``shares`` (L, G) of ``layers`` in the importance to each of ``groups``; each column sums to 1."""

    layers: tuple[str, ...]
    groups: tuple[str, ...]
    shares: Shares

    @property
    def relative(self) -> Shares:
        """Each share over the mean of its layer's shares, (L, G); 1 for a layer that no group needs."""
        mean = self.shares.mean(axis=1, keepdims=True)
        ratio: Shares = np.divide(self.shares, mean, out=np.ones_like(self.shares), where=mean > 0)
        return ratio


def layer_sensitivity(maps: ImportanceMaps) -> Sensitivity:
    """Return the layers' shares of each group's importance.

    Raises ``UserError`` naming a group whose importance is 0 everywhere.

    >>> layers = {"a": np.array([[[1.0]], [[3.0]]], np.float32), "b": np.array([[[-3.0]], [[1.0]]], np.float32)}
    >>> layer_sensitivity(ImportanceMaps(("x", "y"), (1, 1), layers)).shares.tolist()
    [[0.25, 0.75], [0.75, 0.25]]
    """
    totals = np.array(
        [np.abs(values.reshape(len(values), -1)).sum(axis=1, dtype=np.float64) for values in maps.layers.values()]
    )
    whole = totals.sum(axis=0)
    for group, value in zip(maps.groups, whole, strict=True):
        if value == 0:
            raise UserError(f"importance: group {group!r}: got 0 for every weight; allowed: importance above 0")
    return Sensitivity(tuple(maps.layers), maps.groups, totals / whole)


def mean_sensitivity(found: Sequence[Sensitivity]) -> Sensitivity:
    """Return the mean over seeds; other layers or groups raise ``UserError``."""
    first = found[0]
    for item in found:
        if (item.layers, item.groups) != (first.layers, first.groups):
            raise UserError("importance: got other layers or groups in another seed; allowed: the same")
    return Sensitivity(first.layers, first.groups, np.mean([item.shares for item in found], axis=0))


def sensitivity_rows(found: Mapping[str, Sensitivity]) -> list[list[object]]:
    """Return one csv row per model, layer and group: share of the group's importance, and relative to all groups."""
    rows: list[list[object]] = [["model", "layer", "group", "share", "relative"]]
    for model, item in found.items():
        for layer, shares, ratios in zip(item.layers, item.shares, item.relative, strict=True):
            for group, share, ratio in zip(item.groups, shares, ratios, strict=True):
                rows.append([model, layer, group, float(share), float(ratio)])
    return rows


def sensitivity_map(found: Sensitivity, title: str) -> Figure:
    """Draw layer × group: shares in percent, and relative to the mean over groups (logarithmic colours)."""
    layers, groups = [short(name, 34) for name in found.layers], [short(name, 18) for name in found.groups]
    width = 0.62 if len(groups) <= WRITTEN else 0.3
    figure = new_figure(3.4 + 2 * (1.0 + width * len(groups)), 1.5 + 0.235 * len(layers))
    share, ratio = figure.subplots(1, 2, sharey=True)
    image = share.imshow(100 * found.shares, cmap="cividis", aspect="auto", vmin=0)
    figure.colorbar(image, ax=share, label="share of the group’s importance (%)")
    logs = np.log2(np.maximum(found.relative, 1e-6))
    limit = min(max(float(np.abs(logs).max()), 0.1), FURTHEST)
    image = ratio.imshow(logs, cmap="PuOr_r", aspect="auto", vmin=-limit, vmax=limit)
    bar = figure.colorbar(image, ax=ratio, label="relative to the mean over groups", extend="both")
    ends = [-limit, -limit / 2, 0.0, limit / 2, limit]
    bar.set_ticks(ends, labels=[f"×{2**end:.2f}" for end in ends])
    if len(groups) <= WRITTEN:
        _write(share, 100 * found.shares, (100 * found.shares).max() / 2, "{:.1f}", dark_low=True)
        _write(ratio, found.relative, 2.0 ** (0.6 * limit), "{:.2f}", dark_low=False)
    for axes, text in ((share, "share of importance"), (ratio, "more or less than other groups")):
        axes.set_title(text, fontsize=10)
        axes.set_xticks(range(len(groups)), labels=groups, rotation=40, ha="right", fontsize=8)
        axes.tick_params(length=0)
    share.set_yticks(range(len(layers)), labels=layers, fontsize=7)
    figure.suptitle(short(title, 70), fontsize=11)
    return figure


def _write(axes: Axes, values: Shares, turn: float, form: str, *, dark_low: bool) -> None:
    """Write the values: light below ``turn`` where low is dark, else light far from 1 on either side."""
    for line, row in enumerate(values):
        for column, value in enumerate(row):
            light = value < turn if dark_low else max(value, 1 / max(value, 1e-6)) > turn
            axes.text(column, line, form.format(value), ha="center", va="center", fontsize=7,
                      color="white" if light else "black")  # fmt: skip


def sensitivities(maps: Iterable[tuple[str, ImportanceMaps]]) -> dict[str, Sensitivity]:
    """Return model → the mean over its seeds of ``maps`` (model, maps)."""
    found: dict[str, list[Sensitivity]] = {}
    for model, item in maps:
        found.setdefault(model, []).append(layer_sensitivity(item))
    return {model: mean_sensitivity(items) for model, items in found.items()}
