"""What an exported file says in a runtime, beside what the simulation said: sample by sample, group by group.

    agreement = share of samples whose predicted class is the same     max_logit_difference = max |Δlogit|

Accuracies, worst group and gap are counted as the evaluate stage counts them, once for the simulation and once for the
runtime, so that fairness can be read off what is really deployed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from fairquant.config.export import ExportGatesSection
from fairquant.config.schema import EvaluateSection
from fairquant.data.store import Store
from fairquant.errors import ArtifactError
from fairquant.evaluate import gaps
from fairquant.evaluate.change import GroupChange, compare
from fairquant.evaluate.gates import judge
from fairquant.evaluate.groups import Floats as Doubles
from fairquant.evaluate.groups import GroupTable, defined
from fairquant.evaluate.summary import metric_keys, summarise_table
from fairquant.export.runtimes import Floats, Runtime
from fairquant.predictions import SplitPredictions

Metrics = Mapping[str, Any]


def normalise(pixels: npt.NDArray[np.uint8], *, mean: Sequence[float], std: Sequence[float]) -> Floats:
    """Return images as a model takes them, float32 (B, 3, H, W): (x − 255·mean) · (1/(255·std)).

    The same numbers bit for bit as ``fairquant.data.batches`` makes with torch.

    Args:
        pixels: uint8 (B, H, W, 3).
        mean: of each channel of images in [0, 1].
        std: of each channel, positive.

    >>> normalise(np.full((1, 1, 1, 3), 255, np.uint8), mean=[0.5] * 3, std=[0.25] * 3).ravel().tolist()
    [2.0, 2.0, 2.0]
    """
    middle, spread = (np.asarray(values, np.float32).reshape(1, -1, 1, 1) * np.float32(255) for values in (mean, std))
    images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32)
    images -= middle
    images *= np.float32(1) / spread
    return images


def runtime_predictions(
    session: Runtime, store: Store, split: str, *, batch_size: int, limit: int | None = None, name: str = "runtime"
) -> SplitPredictions:
    """Return the logits of ``session`` on ``split``, in the store's order.

    Args:
        session: a ``runtimes.Session``, or whatever runs images like one.
        store: the prepared data.
        split: train | val | test.
        batch_size: images per call, at least 1; the last call may take fewer.
        limit: only the first so many samples; None takes all.
        name: what the progress bar is called.
    """
    rows = store.indices(split)[:limit]
    logits = [np.zeros((0, len(store.classes)), np.float32)]
    with tqdm(total=len(rows), desc=name, unit="image", disable=None) as bar:
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            logits.append(session.run(normalise(store.images[chosen], mean=store.meta["mean"], std=store.meta["std"])))
            bar.update(len(chosen))
    if logits[-1].shape[1:] != logits[0].shape[1:]:
        got, classes = logits[-1].shape[1:], len(store.classes)
        raise ArtifactError(f"{name}: got logits of shape (N, {', '.join(map(str, got))}); allowed: (N, {classes})")
    return SplitPredictions(np.concatenate(logits), store.labels[rows], store.groups[rows], rows)


def parity(
    simulation: SplitPredictions,
    runtime: SplitPredictions,
    *,
    classes: Sequence[str],
    groups: Sequence[str],
    section: EvaluateSection,
) -> dict[str, Any]:
    """Return how a runtime's predictions differ from the simulation's.

    Args:
        simulation: predictions of the quantized torch model.
        runtime: predictions of the exported file on the same samples.
        classes: K class names.
        groups: G group names.
        section: its ``min_group_size`` and ``parity`` apply as in the evaluate stage.

    Returns:
        ``n``, ``agreement``, ``max_logit_difference``; {simulation, runtime} of ``overall`` and ``worst_group``
        accuracy and, with parity, of the accuracy ``gap`` (max − min); ``group`` by name {n, agreement,
        max_logit_difference, simulation, runtime}. Shares are in [0, 1]; what is undefined is None.

    Raises:
        ArtifactError: the samples or the numbers of classes differ, or a logit is not finite.
    """
    change = compare(simulation, runtime, groups=groups)
    difference = _difference(simulation, runtime)
    with gaps.each_warning_once():
        counted = gaps.large_enough(simulation.groups, groups=groups, minimum=section.min_group_size)
        sides = {
            name: _accuracies(predictions, classes=classes, groups=groups, counted=counted, parity=section.parity)
            for name, predictions in (("simulation", simulation), ("runtime", runtime))
        }
    result = _agreement(len(difference), int(change.flips.sum()), difference)
    result |= {metric: {side: sides[side][metric] for side in sides} for metric in sides["simulation"]}
    result["group"] = {
        key: _group_row(change, g, difference[simulation.groups == g]) for g, key in enumerate(metric_keys(groups))
    }
    return result


def export_gates(metrics: Metrics, section: ExportGatesSection) -> dict[str, Any]:
    """Return which gates passed: the worst of all files and runtimes counts.

    Args:
        metrics: results of ``parity`` by the name of the runtime or format. Without any nothing is known: the gates
            that are set fail, with one warning each.
        section: the limits; None is no gate.

    Returns:
        ``passed``: no gate failed; ``gate``: {value, limit, passed} of each gate that is set.

    Example:
        >>> found = {"onnxruntime": {"agreement": 1.0}, "openvino": {"agreement": 0.995}}
        >>> export_gates(found, ExportGatesSection(disagreement=0.01))["gate"]
        {'disagreement': {'value': 0.005, 'limit': 0.01, 'passed': True}}
    """
    return judge(metrics, VALUES, section, key="export.gates")


def _difference(simulation: SplitPredictions, runtime: SplitPredictions) -> Doubles:
    """Return the largest |Δlogit| of each sample, (N,); refuse what cannot be compared."""
    if simulation.logits.shape != runtime.logits.shape:
        shapes = f"{runtime.logits.shape} for {simulation.logits.shape} of the simulation"
        raise ArtifactError(f"parity: got logits {shapes}; allowed: the same classes")
    for name, predictions in (("simulation", simulation), ("runtime", runtime)):
        broken = int((~np.isfinite(predictions.logits)).any(axis=1).sum())
        if broken:
            found = f"{broken} of {len(predictions.logits)} samples of the {name} with logits that are not finite"
            raise ArtifactError(f"parity: got {found}; allowed: finite numbers")
    distance = np.abs(runtime.logits.astype(np.float64) - simulation.logits.astype(np.float64))
    largest: Doubles = distance.max(axis=1, initial=0.0)
    return largest


def _accuracies(
    predictions: SplitPredictions,
    *,
    classes: Sequence[str],
    groups: Sequence[str],
    counted: Sequence[bool],
    parity: bool,
) -> dict[str, float | None]:
    table = GroupTable.count(
        predictions.labels, predictions.predicted, predictions.groups, classes=classes, groups=groups
    )
    summary = summarise_table(table, positive=None, parity=False, counted=counted)
    accuracies = {"overall": summary["overall_acc"], "worst_group": summary["worst_acc"]}
    return accuracies | ({"gap": gaps.max_minus_min(table.only(counted))} if parity else {})


def _agreement(n: int, flips: int, difference: Doubles) -> dict[str, Any]:
    return {
        "n": n,
        "agreement": 1 - flips / n if n else None,
        "max_logit_difference": float(difference.max()) if n else None,
    }


def _group_row(change: GroupChange, g: int, difference: Doubles) -> dict[str, Any]:
    return {
        **_agreement(int(change.counts[g]), int(change.flips[g]), difference),
        "simulation": defined(change.before[g]),
        "runtime": defined(change.after[g]),
    }


def _largest(values: Sequence[float | None]) -> float | None:
    """Return the largest value; None where there is none, or one is undefined."""
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None


def _disagreement(metrics: Metrics) -> float | None:
    agreements = [found["agreement"] for found in metrics.values()]
    return _largest([None if agreement is None else 1 - agreement for agreement in agreements])


VALUES: Mapping[str, Callable[[Metrics], float | None]] = {
    "disagreement": _disagreement,
    "logit_difference": lambda metrics: _largest([found["max_logit_difference"] for found in metrics.values()]),
}
"""What each gate looks at."""
