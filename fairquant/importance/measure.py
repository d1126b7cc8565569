"""The one loop that measures importance.

The model is in evaluation mode, on un-augmented training images; a batch holds one group only, so the cost is one
forward and one backward pass over the samples whatever the number of groups (metrics of second derivatives need more).
With d_b the derivative of batch b's mean cross-entropy that the metric looks at, most often the gradient, and n_b the
batch's samples, the map of a group is

- ``normalize: sample``: Σ_b n_b · score(d_b, w) / Σ_b n_b, which the group's size does not scale; metrics that average
  derivatives give score(Σ_b n_b · d_b / Σ_b n_b, w)
- ``normalize: none``:   Σ_b score(d_b, w)

Metrics that score single samples have the mean over the batch's samples of score(d_i, w) in place of score(d_b, w),
with d_i the gradient of sample i's cross-entropy: with ``normalize: sample`` the map is a mean over the group's
samples, however they are batched.

Several processes share the batches, whole, of all groups dealt as one list (``fairquant.importance.dealing``). Each
adds up what it has of every group on its own and waits for nobody; at the end the sums meet, one group after the other,
before anything is averaged, scored or checked. Every process returns the same maps: those of one process up to the
order in which float32 sums are added.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal, Never

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from tqdm import tqdm

from fairquant.config import Section
from fairquant.data.batches import Batch, iterate, n_batches
from fairquant.data.store import Store
from fairquant.errors import UserError
from fairquant.importance.dealing import deal, failing_together
from fairquant.importance.maps import ImportanceMaps, Map, check_finite
from fairquant.importance.metric import Derivatives, Metric, SampleScores, Score
from fairquant.models.layers import quantizable_layers, weight_parameter
from fairquant.parallel.collectives import add_up, is_first, world_size


def measure_importance(
    model: nn.Module,
    store: Store,
    *,
    metric: str,
    options: Section | None = None,
    by: Literal["group", "class"] = "group",
    normalize: Literal["sample", "none"] = "sample",
    batch_size: int,
    samples_per_group: int | None = None,
    device: torch.device,
    precision: str = "fp32",
    seed: int,
    progress: bool = True,
) -> ImportanceMaps:
    """Measure what every weight of every quantizable layer is worth to each group.

    Args:
        model: the classifier; moved to ``device`` and into channels-last layout, otherwise left as it was (values,
            mode, statistics, gradients).
        store: the decoded data; its train split is read.
        metric: name of an importance plug-in.
        options: the plug-in's settings; None: its default ones.
        by: whether groups or classes play the part of groups.
        normalize: see the module's formula.
        batch_size: samples per batch; a group's last batch may be smaller.
        samples_per_group: at most so many samples per group, chosen by ``seed``; None: all.
        device: where to compute; finished maps are held in main memory.
        precision: ``fp32`` or ``bf16`` (autocast; maps are float32 in both).
        seed: fixes which samples and in which order (batches are consecutive slices of one permutation), and what a
            metric draws for each batch.
        progress: show a bar on a terminal (the first process's share).

    Raises ``UserError`` for a group without training samples and for values that are not finite, in every process.
    """
    names, rows = _samples(store, by=by, limit=samples_per_group, seed=seed)
    plugin = Metric.load(metric, options)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # the layout of the gradients
    modules = quantizable_layers(model)
    weights = {name: weight_parameter(layer) for name, layer in modules.items()}
    layers = {name: np.empty((len(names), *weight.shape), np.float32) for name, weight in weights.items()}
    dealt = deal([n_batches(len(chosen), batch_size, False) for chosen in rows])
    steps = sum(len(numbers) for numbers in dealt)
    bar = tqdm(total=steps, desc="importance", unit="batch", disable=None if progress and is_first() else True)
    sums = [torch.empty_like(weight, requires_grad=False) for weight in weights.values()]
    finish = partial(_finish, sums, layers, list(weights.values()), plugin, names, rows, normalize=normalize)
    with _gradients_of(model, weights):
        with bar, failing_together():
            samples = None if plugin.sample_scores is None else plugin.sample_scores(modules)
            for index, (chosen, numbers) in enumerate(zip(rows, dealt, strict=True)):
                batches = iterate(store, chosen, batch_size=batch_size, device=device, numbers=numbers)
                for total in sums:
                    total.zero_()
                _accumulate(
                    sums, model, weights, zip(numbers, batches, strict=True), plugin, samples,
                    normalize=normalize, precision=precision, seed=seed, bar=bar,
                )  # fmt: skip
                if world_size() == 1:
                    finish(index)
                else:
                    _hold(sums, layers, index=index)
        if world_size() > 1:
            for index in range(len(names)):
                _meet(sums, layers, index=index)
                finish(index)
    meta = {"metric": metric, "by": by, "normalize": normalize, "batch_size": batch_size, "seed": seed}
    if settings := plugin.options.model_dump():
        meta["options"] = settings
    return ImportanceMaps(names, tuple(len(chosen) for chosen in rows), layers, meta)


def _samples(
    store: Store, *, by: str, limit: int | None, seed: int
) -> tuple[tuple[str, ...], list[npt.NDArray[np.int64]]]:
    """Return the groups' names and, for each, the rows of its samples in the order they are used.

    The order is a permutation: a table sorted by class would otherwise make batches of one class. It depends on the
    seed and the group's own rows alone, so renumbering the groups permutes the maps and changes nothing else.
    """
    names, marks = (store.group_names, store.groups) if by == "group" else (store.classes, store.labels)
    train = store.indices("train")
    rows = [train[marks[train] == index] for index in range(len(names))]
    empty = [name for name, chosen in zip(names, rows, strict=True) if len(chosen) == 0]
    if empty:
        absent = ", ".join(empty)
        raise UserError(f"importance.by: got {by!r}, but no training sample of {absent}; allowed: one or more")
    return tuple(names), [np.random.default_rng(seed).permutation(chosen)[:limit] for chosen in rows]


def _accumulate(
    sums: list[Tensor],
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    batches: Iterable[tuple[int, Batch]],
    metric: Metric,
    samples: SampleScores | None,
    *,
    normalize: str,
    precision: str,
    seed: int,
    bar: tqdm[Never],
) -> None:
    """Add what one group's numbered ``batches`` give to ``sums``, which are 0, on the device."""
    parameters = list(weights.values())
    score = None if _scored_once(metric, normalize) else metric.score
    for number, batch in batches:
        share = len(batch.labels) if normalize == "sample" else 1
        if samples is not None:
            samples(sums, partial(_losses, model, batch, metric, precision, reduction="none"), share)
        else:
            loss = _losses(model, batch, metric, precision, reduction="mean")
            derivatives = metric.derivative(loss, parameters, metric.options, (seed, number))
            del loss  # and with it the batch's graph
            _add_scores(sums, parameters, derivatives, score, share)
        bar.update()


def _scored_once(metric: Metric, normalize: str) -> bool:
    """Return whether a group's derivatives are averaged before they are scored."""
    return normalize == "sample" and metric.averages_derivative


def _losses(model: nn.Module, batch: Batch, metric: Metric, precision: str, *, reduction: str) -> Tensor:
    """Run the forward pass; return the batch's cross-entropy, its ``mean`` or with ``none`` each sample's."""
    with metric.forward(batch.images.device, precision):
        return F.cross_entropy(model(batch.images).float(), batch.labels, reduction=reduction)


@torch.no_grad()
def _add_scores(
    sums: list[Tensor], parameters: list[nn.Parameter], derivatives: Derivatives, score: Score | None, share: int
) -> None:
    """Add ``share`` times the scored derivatives to ``sums``; as they are without ``score``."""
    for total, parameter, derivative in zip(sums, parameters, derivatives, strict=True):
        if derivative is not None:  # a layer the loss does not depend on is worth nothing
            total.add_(derivative if score is None else score(derivative, parameter), alpha=share)


@torch.no_grad()
def _finish(
    sums: list[Tensor],
    layers: Mapping[str, Map],
    parameters: list[nn.Parameter],
    metric: Metric,
    groups: Sequence[str],
    rows: Sequence[npt.NDArray[np.int64]],
    index: int,
    *,
    normalize: str,
) -> None:
    """Make ``sums`` over all samples of group ``index`` its map, check it and copy it to main memory.

    So the device holds one group at a time.
    """
    for name, total, parameter in zip(layers, sums, parameters, strict=True):
        if normalize == "sample":
            total.div_(len(rows[index]))
        if _scored_once(metric, normalize):
            total.copy_(metric.score(total, parameter))
        # A finite sum has finite terms and costs a twentieth of looking at each; an infinite one may be overflow.
        check_finite(name, groups[index], bool(torch.isfinite(total.sum())) or bool(torch.isfinite(total).all()))
    _hold(sums, layers, index=index)


def _hold(sums: list[Tensor], layers: Mapping[str, Map], *, index: int) -> None:
    """Copy one group's sums to their place in main memory."""
    for array, total in zip(layers.values(), sums, strict=True):
        array[index] = total.float().cpu().numpy()


def _meet(sums: list[Tensor], layers: Mapping[str, Map], *, index: int) -> None:
    """Replace ``sums`` by those of all processes together, from what each holds of group ``index``."""
    for array, total in zip(layers.values(), sums, strict=True):
        total.copy_(torch.from_numpy(array[index]))
    add_up(sums)


@contextmanager
def _gradients_of(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Evaluation mode, gradients for ``weights`` alone; on leaving, every flag is as it was."""
    training = [module for module in model.modules() if module.training]
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    wanted = {id(weight) for weight in weights.values()}
    try:
        model.eval()
        for parameter in required:
            parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for parameter, flag in required.items():
            parameter.requires_grad_(flag)
        for module in training:
            module.training = True
