"""An importance plug-in as the measuring loop sees it: with its options, and with defaults for what it leaves out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairquant import plugins
from fairquant.config import Section
from fairquant.devices import autocast
from fairquant.models.layers import Layer

Score = Callable[[Tensor, Tensor], Tensor]
Derivatives = Sequence[Tensor | None]
"""One tensor per weight; None where the loss does not depend on the weight."""
SampleScores = Callable[[Sequence[Tensor], Callable[[], Tensor], float], None]
"""(sums, losses, share): run ``losses``, a forward pass that returns each sample's loss (samples,), and add ``share``
times the mean over the samples of the score of each one's gradient to ``sums``, one float32 tensor per weight."""


@dataclass(frozen=True)
class Metric:
    """One metric, ready to be measured; see ``fairquant.importance.metrics`` for what its functions promise.

    Attributes:
        name: of the plug-in.
        options: its settings.
        score: (derivative, weight) → importance, all of the weight's shape.
        derivative: (loss of one batch, weights, options, seeds) → what ``score`` is given.
        forward: (device, precision) → the context of the forward pass.
        averages_derivative: whether a group's derivative is averaged over its batches before it is scored.
        sample_scores: layers by name → what scores single samples, made once per measurement; None: batches are scored.
    """

    name: str
    options: Section
    score: Score
    derivative: Callable[[Tensor, Sequence[nn.Parameter], Any, tuple[int, int]], Derivatives]
    forward: Callable[[torch.device, str], AbstractContextManager[None]]
    averages_derivative: bool
    sample_scores: Callable[[Mapping[str, Layer]], SampleScores] | None

    @classmethod
    def load(cls, name: str, options: Section | None = None) -> Metric:
        """Return the metric ``name``; without ``options`` with its default ones.

        Raises ``ConfigError`` for an unknown name.

        >>> Metric.load("grape").averages_derivative, Metric.load("hawq").averages_derivative
        (False, True)
        """
        plugin = plugins.load("importance", name)
        return cls(
            name=name,
            options=plugin.Options() if options is None else options,
            score=plugin.score,
            derivative=getattr(plugin, "derivative", gradients),
            forward=getattr(plugin, "forward", autocast),
            averages_derivative=getattr(plugin, "AVERAGED", "score") == "derivative",
            sample_scores=getattr(plugin, "sample_scores", None),
        )


def gradients(loss: Tensor, weights: Sequence[nn.Parameter], options: Section, seeds: tuple[int, int]) -> Derivatives:
    """Return the gradient of ``loss`` with respect to each weight; nothing is drawn."""
    return torch.autograd.grad(loss, weights, allow_unused=True)
