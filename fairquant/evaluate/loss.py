"""How much more compression costs one group than another, measured by the loss: finer than accuracy.

With J(g) the mean cross-entropy of group g's samples (natural logarithm):
    excessive loss R(g) = J_after(g) - J_before(g)        phi = max over groups g, h of |R(g) - R(h)|
Tran et al. 2022, "Pruning has a disparate impact on model accuracy", arXiv 2205.13574.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fairquant.evaluate.change import require_same_samples
from fairquant.evaluate.gaps import LOG, NAMED
from fairquant.evaluate.groups import Floats, defined, ratio
from fairquant.evaluate.summary import metric_keys
from fairquant.predictions import SplitPredictions

BLOCK = 2**20
"""How many logits are worked on at a time, 8 MB."""


def excessive_loss(
    before: SplitPredictions,
    after: SplitPredictions,
    *,
    groups: Sequence[str],
    counted: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """Return each group's excessive loss and the largest difference between two groups.

    Args:
        before: predictions of the full-precision model.
        after: predictions of the quantized model on the same samples.
        groups: G group names.
        counted: (G,), False for groups too small to count in phi; None counts all.

    Returns:
        ``group`` by name, in nats per sample (negative where the loss fell), and ``phi`` >= 0. A group without
        samples, or whose loss is not finite, is null with one warning and left out of phi; with fewer than two
        groups left phi is null.

    Raises:
        ArtifactError: the two were not made on the same samples.

    Example:
        >>> labels, sexes = np.array([0, 0]), np.array([0, 1])
        >>> def model(logits): return SplitPredictions(np.array(logits, np.float32), labels, sexes, np.arange(2))
        >>> result = excessive_loss(model([[2, 0], [2, 0]]), model([[2, 0], [0, 0]]), groups=["female", "male"])
        >>> result["group"]["female"], round(result["group"]["male"], 3), round(result["phi"], 3)
        (0.0, 0.566, 0.566)
    """
    require_same_samples(before, after)
    counts = np.bincount(before.groups, minlength=len(groups))
    values = group_loss(after, groups=groups) - group_loss(before, groups=groups)
    values[~np.isfinite(values)] = np.nan
    warn_null("excessive_loss", "no samples", groups, counts == 0)
    warn_null("excessive_loss", "loss not finite", groups, np.isnan(values) & (counts > 0))
    counts_in_phi = np.ones(len(groups), dtype=bool) if counted is None else np.asarray(counted, dtype=bool)
    known = values[~np.isnan(values) & counts_in_phi]
    if len(known) < 2:
        LOG.warning("excessive_loss.phi: undefined, fewer than two groups have a loss; null")
    return {
        "group": {key: defined(value) for key, value in zip(metric_keys(groups), values, strict=True)},
        "phi": float(known.max() - known.min()) if len(known) >= 2 else None,
    }


def group_loss(predictions: SplitPredictions, *, groups: Sequence[str]) -> Floats:
    """Return each group's mean cross-entropy in nats, (G,); NaN where it has no samples."""
    losses = cross_entropy(predictions.logits, predictions.labels)
    total = np.bincount(predictions.groups, weights=losses, minlength=len(groups))
    return ratio(total, np.bincount(predictions.groups, minlength=len(groups)))


def cross_entropy(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
    """Return the cross-entropy of each sample in nats, float64 (N,), from logits (N, C) and labels (N,) in [0, C).

    >>> cross_entropy([[0.0, 0.0], [1000.0, 0.0]], [1, 1]).round(3).tolist()
    [0.693, 1000.0]
    """
    return -class_log_probability(logits, labels)


def class_log_probability(logits: npt.ArrayLike, classes: npt.ArrayLike) -> Floats:
    """Return the logarithm of the probability of one class for each sample, float64 (N,); in [0, C) of logits (N, C).

    A block of samples at a time, so that many classes do not fill the memory.
    """
    values, chosen = np.asarray(logits), np.asarray(classes, dtype=np.int64)
    found = np.empty(len(chosen))
    step = max(1, BLOCK // max(values.shape[1], 1))
    for start in range(0, len(chosen), step):
        rows = slice(start, start + step)
        block = log_softmax(values[rows])
        found[rows] = block[np.arange(len(block)), chosen[rows]]
    return found


def log_softmax(logits: npt.ArrayLike) -> Floats:
    """Return the logarithm of the softmax over the last axis, float64; the largest logit is subtracted first.

    Logits that are not finite have no softmax: NaN in, or +inf in, is NaN out.
    """
    values = np.asarray(logits, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf
        shifted = values - values.max(axis=-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def warn_null(metric: str, reason: str, groups: Sequence[str], mask: npt.NDArray[np.bool_]) -> None:
    """Log one line that names the groups of ``mask`` (G,), where a metric is undefined; nothing if there are none."""
    names = [f"group {name!r}" for name, undefined in zip(groups, mask, strict=True) if undefined]
    if names:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        LOG.warning("%s: undefined (%s) in %s%s; null", metric, reason, ", ".join(names[:NAMED]), more)
