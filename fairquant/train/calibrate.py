"""Calibration: activation ranges are found on some training images, without labels and without gradients.

All images are shown, un-augmented, to the observers while activations are left as they are and weights are quantized as
they will be; then every quantizer takes its grid from its observer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from fairquant.config.quantization import CalibrationSection
from fairquant.data.batches import iterate
from fairquant.data.store import Ints, Store
from fairquant.devices import autocast
from fairquant.quantize.activate import activation_quantizers, forget_ranges, keep_points
from fairquant.quantize.activation import ActivationQuantizer
from fairquant.train.calibration_images import calibration_rows
from fairquant.train.processes import same_everywhere

LOG = logging.getLogger(__name__)


@torch.no_grad()
def calibrate(
    model: nn.Module,
    store: Store,
    section: CalibrationSection,
    *,
    device: torch.device,
    precision: str,
    seed: int,
    groups_accuracy: Sequence[float] | None = None,
) -> Ints:
    """Find the range of every activation quantizer of ``model``, in place; return the rows of the images used.

    Args:
        model: with activation quantizers, on ``device``; it runs in evaluation mode and ends in the mode it was in.
        store: the prepared data; its train split is read.
        section: how many images, and of which groups.
        device: where to compute.
        precision: fp32, or bf16 for autocast.
        seed: of the draw.
        groups_accuracy: the full-precision model's accuracy per group on the validation split (NaN where a group has no
            images there), for ``sampling: worst_group``.

    All processes calibrate alike, on all images, and take over the first one's ranges.

    What observers saw before is forgotten. Points in front of layers that no image passes through are taken away and
    named in a warning. Dynamic quantizers have no range to find: one batch tells which points are used. Raises
    ``UserError`` as ``calibration_rows`` does, and where activations are not finite.
    """
    quantizers = activation_quantizers(model)
    dynamic = all(quantizer.dynamic for quantizer in quantizers.values())
    if dynamic:  # any images tell which points are used
        section = section.model_copy(update={"sampling": "random"})
    rows = calibration_rows(store, section, seed=seed, groups_accuracy=groups_accuracy)
    forget_ranges(model)
    if dynamic:
        rows = rows[: section.batch_size]
    was_training = model.training
    model.eval()
    try:
        with _observed(quantizers) as seen:
            for batch in iterate(store, rows, batch_size=section.batch_size, device=device):
                with autocast(device, precision):
                    model(batch.images)
    finally:
        model.train(was_training)
    silent = keep_points(model, seen)
    if silent:
        LOG.warning("activations: no image passes through %s; left floating", ", ".join(silent))
    for name, quantizer in activation_quantizers(model).items():
        quantizer.settle(point=name)
    same_everywhere(model)
    return rows


@contextmanager
def _observed(quantizers: dict[str, ActivationQuantizer]) -> Iterator[set[str]]:
    """Let the observers see full precision; yields the names of the points that something passed through."""
    seen: set[str] = set()
    hooks = [
        quantizer.register_forward_pre_hook(lambda *_, name=name: seen.add(name))
        for name, quantizer in quantizers.items()
    ]
    for quantizer in quantizers.values():
        quantizer.observing, quantizer.quantizing = True, False
    try:
        yield seen
    finally:
        for quantizer in quantizers.values():
            quantizer.observing, quantizer.quantizing = False, True
        for hook in hooks:
            hook.remove()
