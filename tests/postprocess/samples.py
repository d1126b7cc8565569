"""Scores of three groups that a classifier serves unequally well."""

from __future__ import annotations

from typing import Any

import numpy as np

from fairquant import plugins
from fairquant.postprocess._fitted import Scores

GROUPS = ("a", "b", "c")


def sample(seed: int = 0, n: int = 600, bases=(0.3, 0.5, 0.6), strengths=(1.0, 2.0, 3.0)) -> tuple[Any, Any, Any]:
    """Return scores, positives and members; probabilities are calibrated: those of Gaussian evidence."""
    random = np.random.default_rng(seed)
    members = random.integers(0, len(bases), n)
    base, strength = np.array(bases)[members], np.array(strengths)[members]
    positives = random.random(n) < base
    evidence = strength * (positives - 0.5) + random.normal(size=n)
    margin = strength * evidence + np.log(base / (1 - base))
    return Scores(1 / (1 + np.exp(-margin)), margin > 0), positives, members


def fit(name: str, scores: Scores, positives: Any, members: Any, *, groups: Any = GROUPS, **settings: Any) -> Any:
    """Return what a method fits, with its default options or ``settings``."""
    module = plugins.load("postprocess", name)
    return module.fit(scores, positives, members, groups=groups, options=module.Options(**settings))
