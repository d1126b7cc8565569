"""What post-processing makes of a classifier before and after its quantization: fitted on val, measured on test.

Each classifier is post-processed by a method fitted on its own validation predictions. Methods draw some decisions by
lot; every number here is the expectation over the lot, of rates and therefore of gaps between rates, so nothing depends
on a seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairquant import plugins
from fairquant.config.load import check_classes
from fairquant.config.schema import EvaluateSection
from fairquant.evaluate.groups import GroupTable
from fairquant.evaluate.summary import flat_gaps, metric_keys, positive_index, summarise_table
from fairquant.postprocess import Scores
from fairquant.predictions import Predictions


def mitigated(
    models: Mapping[str, Predictions],
    *,
    methods: Mapping[str, Any],
    section: EvaluateSection,
    counted: Sequence[bool],
) -> dict[str, Any]:
    """Return the metrics of each method's decisions on the test split.

    Args:
        models: predictions of ``val`` and ``test`` by name: before and after quantization.
        methods: options by name of the method.
        section: positive class, and whether gaps are computed.
        counted: (G,) whether a group counts in worst group and gaps; those that do not are not made equal either.

    Returns:
        {method: {model: ``overall`` and ``worst_group`` accuracy; ``gap`` by name (absent without parity); ``group``
        by name {n, accuracy, selection_rate, tpr, fpr, tnr}; ``fitted`` by name of the groups that are changed}}.
        What is undefined is None.

    Raises:
        ConfigError: there are other than two classes.
    """
    result = {}
    for name, options in methods.items():
        check_classes(tuple(methods), next(iter(models.values())).classes)
        result[name] = {
            model: _mitigated(name, options, predictions, section, np.asarray(counted))
            for model, predictions in models.items()
        }
    return result


def _mitigated(
    name: str, options: Any, predictions: Predictions, section: EvaluateSection, counted: np.ndarray[Any, Any]
) -> dict[str, Any]:
    classes, groups = predictions.classes, predictions.groups
    positive = positive_index(section.positive_class, classes)
    assert positive is not None  # two classes have one
    names = [group for group, large in zip(groups, counted, strict=True) if large]
    codes = np.where(counted, np.cumsum(counted) - 1, -1)  # of the groups in names
    val, test = predictions["val"], predictions["test"]
    inside = counted[val.groups]
    fitted = plugins.load("postprocess", name).fit(
        Scores.of(val.logits[inside], positive),
        val.labels[inside] == positive,
        codes[val.groups[inside]],
        groups=names,
        options=options,
    )
    chance = fitted.chance(Scores.of(test.logits, positive), codes[test.groups])
    table = GroupTable.expected(test.labels, chance, test.groups, positive=positive, classes=classes, groups=groups)
    summary = summarise_table(table, positive=positive, parity=section.parity, counted=counted.tolist())
    settings = fitted.settings()
    return {
        "overall": summary["overall_acc"],
        "worst_group": summary["worst_acc"],
        **({"gap": flat_gaps(summary)} if section.parity else {}),
        "group": summary["group"],
        "fitted": dict(zip(metric_keys(list(settings)), settings.values(), strict=True)),
    }
