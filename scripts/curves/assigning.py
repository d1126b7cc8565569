"""The one place where curves ask for an allocation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fairquant.allocate.bitmap import BitMap
from fairquant.assign import run
from fairquant.config import Config
from fairquant.importance.maps import ImportanceMaps

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Assigned:
    """Widths, and the rise of each group's cross-entropy they are predicted to cause (empty: nothing was predicted)."""

    bits: BitMap
    predicted: Mapping[str, float | None]


def assign(
    config: Config,
    maps: ImportanceMaps,
    info: Mapping[str, Any],
    model: nn.Module,
    device: torch.device,
    *,
    memory: run.Memory | None = None,
) -> Assigned:
    """Return the widths that the assign stage would choose with ``config``.

    Args:
        config: a whole, valid params.yaml.
        maps: importance by group.
        info: models/pretrained.json.
        model: the full-precision classifier; left as it is.
        device: where to compute what needs computing.
        memory: keeps predicted losses for further calls with the same maps and model.
    """
    result = run.assign(maps, info, config, lambda: _weights(model), memory=memory)
    totals = [] if result.spent is None else result.spent.totals.tolist()
    return Assigned(result.bits, dict(zip(maps.groups, totals, strict=False)))


def _weights(model: nn.Module) -> dict[str, Any]:
    from fairquant.models.layers import quantizable_layers, weight_parameter

    layers = quantizable_layers(model)
    return {name: weight_parameter(layer).detach().float().cpu().numpy() for name, layer in layers.items()}
