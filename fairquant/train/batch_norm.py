"""Batch-norm statistics corrected for what rounding did to them.

Rounding shifts and scales what a layer puts out; the running mean and variance of the full-precision model no longer
fit, and the error grows from layer to layer. Measuring what changed needs forward passes over some training images, no
labels and no gradients (Sun et al. 2019, "Hybrid 8-bit Floating Point Training and Inference for Deep Neural Networks",
NeurIPS, section 3; Finkelstein, Almog & Grobman 2019, arXiv 1906.03193, on the shift of the mean).

With m, v the mean and variance of a layer's input, measured before (fp) and after (q) rounding on the same images,

    running mean ← m_q + r · (running mean − m_fp)      running variance ← r² · running variance      r = √(v_q / v_fp)

so that a layer's input, standardised, has the mean and the variance after rounding that it had before. The running
statistics are corrected, not replaced: they come from a whole training with augmentation, and replacing them by those
of some plain images changes the predictions of a model that was not rounded at all. This way nothing rounded is nothing
changed, and what both measurements have in common, the choice of images, cancels.

m and v are averages, over the batches, of the batch mean and the unbiased batch variance, with all earlier layers
normalising by the batch as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fairquant.data.batches import iterate
from fairquant.data.store import Store
from fairquant.devices import autocast
from fairquant.errors import UserError

BATCH = 256
"""Images per batch: statistics of small batches are noisy."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and variance (C,) of the input of one batch-norm layer."""

    mean: Tensor
    variance: Tensor


def batch_statistics(
    model: nn.Module, store: Store, *, samples: int, device: torch.device, precision: str = "fp32", seed: int
) -> list[Statistics]:
    """Measure the input of every batch-norm layer with running statistics, in module order.

    Args:
        model: on ``device``; left as it was, running statistics and modes included.
        store: the prepared data; un-augmented images of its train split are read.
        samples: how many images, drawn by ``seed``; all where there are fewer.
        device: where to compute.
        precision: fp32, or bf16 for autocast.
        seed: of the draw.

    Raises ``UserError`` for fewer than two images: one has no variance.
    """
    layers = _layers(model)
    if not layers:
        return []
    modes = [(module, module.training) for module in model.modules()]
    kept = [{name: buffer.clone() for name, buffer in layer.named_buffers(recurse=False)} for layer in layers]
    momenta = [layer.momentum for layer in layers]
    try:
        model.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch then averages over the batches
            layer.train()
        _run(model, store, samples=samples, device=device, precision=precision, seed=seed)
        return [Statistics(_buffer(layer.running_mean).clone(), _buffer(layer.running_var).clone()) for layer in layers]
    finally:
        for layer, buffers, momentum in zip(layers, kept, momenta, strict=True):
            layer.momentum = momentum
            layer.load_state_dict(buffers, strict=False)
        for module, training in modes:
            module.training = training


def correct_batch_norm(model: nn.Module, before: Sequence[Statistics], after: Sequence[Statistics]) -> None:
    """Move the running statistics of ``model`` by what changed from ``before`` to ``after``, in place.

    A channel without variance before keeps its running variance.
    """
    with torch.no_grad():
        for layer, old, new in zip(_layers(model), before, after, strict=True):
            ratio = torch.where(old.variance > 0, new.variance / old.variance, 1.0)
            mean = _buffer(layer.running_mean)
            mean.copy_(new.mean + ratio.sqrt() * (mean - old.mean))
            _buffer(layer.running_var).mul_(ratio)


def _layers(model: nn.Module) -> list[_BatchNorm]:
    found = (module for module in model.modules() if isinstance(module, _BatchNorm))
    return [layer for layer in found if layer.running_mean is not None]


def _buffer(value: Tensor | None) -> Tensor:
    if value is None:
        raise ValueError("batch norm: got a layer without running statistics; allowed: one that tracks them")
    return value


def _run(model: nn.Module, store: Store, *, samples: int, device: torch.device, precision: str, seed: int) -> None:
    rows = np.random.default_rng(seed).permutation(store.indices("train"))[:samples]
    if len(rows) < 2:
        raise UserError(f"quantize.calibrate_batch_norm: got {len(rows)} images; allowed: 2 or more of the train split")
    with torch.no_grad():
        for part in np.array_split(rows, max(1, round(len(rows) / BATCH))):
            for batch in iterate(store, part, batch_size=len(part), device=device):
                with autocast(device, precision):
                    model(batch.images)
