"""Which groups compression harmed: a paired test of each group's accuracy before against after.

Within a group only the samples on which exactly one model is right say which model is better. Were the two equally
good, each such sample would be lost or won with probability 1/2, so that lost ~ Binomial(lost + won, 1/2): McNemar's
test (McNemar 1947, Psychometrika 12:153-157) in its exact two-sided form, which never exceeds its level, at the price
of being cautious with few samples (Fagerland et al. 2013, BMC Med. Res. Methodol. 13:91, compare it with mid-p).
Testing G groups at once would call some harmed by chance; Holm's step-down correction (Holm 1979, Scand. J. Statist.
6:65-70) keeps the probability of even one false alarm at ``significance``, whatever the dependence between groups:
    p_holm of the i-th smallest p = max over j <= i of min(1, (m - j + 1) p_j),  m groups with samples
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from fairquant.evaluate import gaps
from fairquant.evaluate.change import GroupChange
from fairquant.evaluate.groups import Floats, defined
from fairquant.evaluate.summary import metric_keys


def harm(change: GroupChange, *, significance: float) -> dict[str, Any]:
    """Return which groups are harmed, as keys of metrics/evaluate.json.

    Args:
        change: two models on the same samples.
        significance: a group is harmed where its Holm-corrected p-value is below this and its accuracy fell.

    Returns:
        ``harm`` by group {n, lost, won, change, p_value, p_holm, harmed} and ``harmed_groups``, their number. A group
        without samples has no change and no p-values (null, with one warning) and counts as not harmed.

    Example:
        >>> counts, lost, won = np.array([100, 50]), np.array([9, 2]), np.array([0, 2])
        >>> before, after = np.array([0.9, 0.8]), np.array([0.81, 0.8])
        >>> result = harm(GroupChange(("x", "y"), counts, before, after, lost + won, lost, won), significance=0.05)
        >>> result["harm"]["x"]["p_value"], result["harm"]["x"]["p_holm"], result["harmed_groups"]
        (0.00390625, 0.0078125, 1)
    """
    present = change.counts > 0
    empty = [f"group {change.groups[g]!r}" for g in np.flatnonzero(~present)]
    gaps.warn_undefined("harm", "accuracy", empty, "null")
    p_value = np.full(len(change.groups), np.nan)
    pairs = zip(change.lost[present], change.won[present], strict=True)
    p_value[present] = [mcnemar(int(lost), int(won)) for lost, won in pairs]
    p_holm = np.full_like(p_value, np.nan)
    p_holm[present] = holm(p_value[present])
    harmed = (p_holm < significance) & (change.lost > change.won)  # NaN compares false
    tree = {
        key: {
            "n": int(change.counts[g]),
            "lost": int(change.lost[g]),
            "won": int(change.won[g]),
            "change": defined(change.change[g]),
            "p_value": defined(p_value[g]),
            "p_holm": defined(p_holm[g]),
            "harmed": bool(harmed[g]),
        }
        for g, key in enumerate(metric_keys(change.groups))
    }
    return {"harm": tree, "harmed_groups": int(harmed.sum())}


def mcnemar(lost: int, won: int) -> float:
    """Return the two-sided p-value of McNemar's exact test; 1 where no sample is lost or won.

    >>> mcnemar(6, 0)  # 2 / 2^6
    0.03125
    """
    return float(stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def holm(p_values: npt.ArrayLike) -> Floats:
    """Return Holm's corrected p-values (m,) in the order given, each in [p, 1].

    >>> holm([0.04, 0.01, 0.03]).round(2).tolist()
    [0.06, 0.03, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected
