"""Batch-norm statistics measured anew on a model whose weights were rounded.

Rounding shifts and scales what a layer puts out; the running mean and variance of the full-precision model no longer
fit, and the error grows from layer to layer. Measuring them again needs forward passes over some training images, no
labels and no gradients (Sun et al. 2019, "Hybrid 8-bit Floating Point Training and Inference for Deep Neural Networks",
NeurIPS, section 3; Finkelstein, Almog, Grobman 2019, arXiv 1906.03193, on the shift of the mean).

Every layer's new statistics are the plain averages, over the batches, of the batch mean and the unbiased batch variance
(``momentum = None`` of torch's batch norm), with all earlier layers normalising by the batch as in training.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fairquant.data.batches import iterate
from fairquant.data.store import Store
from fairquant.devices import autocast

BATCH = 256
"""Images per batch: statistics of small batches are noisy, and their variance is too small."""


def calibrate_batch_norm(
    model: nn.Module, store: Store, *, samples: int, device: torch.device, precision: str = "fp32", seed: int
) -> int:
    """Measure the running statistics of every batch-norm layer anew, in place.

    Args:
        model: on ``device``; its mode, and all that is not a running statistic, is left as it was.
        store: the prepared data; un-augmented images of its train split are read.
        samples: how many images, drawn by ``seed``; all where there are fewer.
        device: where to compute.
        precision: fp32, or bf16 for autocast.
        seed: of the draw.

    Returns:
        How many layers were measured; 0 for a model without batch norm, which stays as it is.
    """
    layers = [
        module for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]  # fmt: skip
    if not layers:
        return 0
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    rows = np.random.default_rng(seed).permutation(store.indices("train"))[:samples]
    batches = max(1, round(len(rows) / BATCH))
    try:
        model.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        with torch.no_grad():
            for part in np.array_split(rows, batches):
                for batch in iterate(store, part, batch_size=len(part), device=device):
                    with autocast(device, precision):
                        model(batch.images)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, training in modes:
            module.training = training
    return len(layers)
