"""Importance of a model's units, measured anew during quantization with the settings of the importance stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fairquant.allocate.units import Units
    from fairquant.config import Config
    from fairquant.data.store import Store


class UnitRanking:
    """Measures importance per group on training images and reduces it over the groups."""

    def __init__(self, config: Config, store: Store, device: torch.device) -> None:
        """Take the settings of the importance and assign stages from ``config``."""
        self.config, self.store, self.device = config, store, device
        self.key: Mapping[str, object] = {
            "importance": config.importance.model_dump(mode="json"),
            "metric": config.importance_metric,
            "metric_options": config.options("importance", config.importance_metric).model_dump(mode="json"),
            "reducer": config.reducer,
            "options": config.options("reducer", config.reducer).model_dump(mode="json"),
        }

    def __call__(self, model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Units:
        """Return the units of the layers in ``shapes`` with their current importance."""
        from fairquant.allocate.rank import rank_units
        from fairquant.importance.measure import measure_importance

        section = self.config.importance
        maps = measure_importance(
            model,
            self.store,
            metric=self.config.importance_metric,
            by=section.by,
            normalize=section.normalize,
            batch_size=section.batch_size,
            samples_per_group=section.samples_per_group,
            device=self.device,
            precision=self.config.precision,
            seed=self.config.seed,
            options=self.config.options("importance", self.config.importance_metric),
        )
        return rank_units(maps, shapes, self.config)
