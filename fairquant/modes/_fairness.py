"""The fairness loss that every mode that trains adds to the cross-entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairquant import plugins

if TYPE_CHECKING:
    from fairquant.config.schema import QuantizeSection
    from fairquant.train.loop import LossTerm


def fairness_terms(section: QuantizeSection) -> list[LossTerm]:
    """Return the term λ · ``section.fairness_loss``; none where its weight is 0."""
    from fairquant.train.loop import LossTerm

    if section.fairness_weight == 0:
        return []
    return [LossTerm(section.fairness_weight, plugins.load("loss", section.fairness_loss).loss)]
