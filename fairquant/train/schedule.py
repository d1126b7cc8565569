"""What a training run's settings become: the optimizer, the learning-rate schedule and the class weights.

At step t of T (counted over all epochs, t from 0):
    cosine    lr · (1 + cos(π t / T)) / 2
    step      lr · gamma^⌊epoch / step_size⌋, epoch from 0
    constant  lr
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, StepLR

from fairquant.config.schema import TrainSection


def make_optimizer(
    model: nn.Module,
    section: TrainSection,
    device: torch.device,
    *,
    learning_rates: Sequence[tuple[Sequence[nn.Parameter], float]] = (),
) -> Optimizer:
    """Return AdamW over the trainable parameters; weight decay acts on kernels and matrices only.

    Parameters with one value per output channel or fewer (biases, norms, learned quantization scales) do not decay.
    ``learning_rates`` are groups of parameters with a rate of their own; these do not decay either.
    """
    apart = {id(p) for parameters, _ in learning_rates for p in parameters}
    trainable = [p for p in model.parameters() if p.requires_grad and id(p) not in apart]
    decayed = [p for p in trainable if p.ndim > 1 and p.numel() > p.shape[0]]
    others = [p for p in trainable if not (p.ndim > 1 and p.numel() > p.shape[0])]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": section.weight_decay},
        {"params": others, "weight_decay": 0.0},
        *({"params": list(own), "lr": lr, "weight_decay": 0.0} for own, lr in learning_rates),
    ]
    fused = device.type in {"cpu", "cuda"}
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=section.lr, fused=fused)


def make_scheduler(optimizer: Optimizer, section: TrainSection, *, steps_per_epoch: int) -> LRScheduler:
    """Return the scheduler named by ``section.schedule``; call its ``step()`` after every optimizer step."""
    if section.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=section.epochs * steps_per_epoch)
    if section.schedule == "step":
        return StepLR(optimizer, step_size=section.step_size * steps_per_epoch, gamma=section.gamma)
    return ConstantLR(optimizer, factor=1.0, total_iters=0)


def class_weights(labels: npt.NDArray[np.int64], n_classes: int, kind: str) -> torch.Tensor | None:
    """Return the cross-entropy's weight of each class, float32 (K,), or None for ``kind == "none"``.

    ``balanced`` is scikit-learn's convention n / (K · n_k), where K counts the classes; a class without training
    samples gets weight 0, which nothing is multiplied with, and does not count in K.
    """
    if kind == "none":
        return None
    counts = np.bincount(labels, minlength=n_classes).astype(np.float64)
    present = counts > 0
    weights = np.where(present, len(labels) / (present.sum() * np.maximum(counts, 1.0)), 0.0)
    return torch.from_numpy(weights.astype(np.float32))
