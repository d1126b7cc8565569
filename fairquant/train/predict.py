"""Run a model over splits of the store, in order, without augmentation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from fairquant.data.batches import iterate
from fairquant.data.store import Store
from fairquant.devices import autocast
from fairquant.predictions import Predictions, SplitPredictions


@torch.no_grad()
def predict(
    model: nn.Module, store: Store, split: str, *, batch_size: int, device: torch.device, precision: str = "fp32"
) -> SplitPredictions:
    """Return the model's logits on ``split`` in eval mode; the model's own mode is left as it was.

    Args:
        model: classifier (B, 3, H, W) -> (B, C), already on ``device``.
        store: the prepared data.
        split: train | val | test.
        batch_size: samples per forward; in fp32 on the CPU it changes logits by rounding at most.
        device: where the model lives.
        precision: fp32, or bf16 for autocast; logits are float32 either way.
    """
    indices = store.indices(split)
    was_training = model.training
    model.eval()
    logits = []
    try:
        for batch in iterate(store, indices, batch_size=batch_size, device=device):
            with autocast(device, precision):
                output = model(batch.images)
            logits.append(output.float())
    finally:
        model.train(was_training)
    stacked = torch.cat(logits).cpu().numpy() if logits else np.zeros((0, len(store.classes)), np.float32)
    return SplitPredictions(stacked, store.labels[indices], store.groups[indices], indices)


def predict_splits(
    model: nn.Module, store: Store, splits: Sequence[str], *, batch_size: int, device: torch.device, precision: str
) -> Predictions:
    """Move ``model`` to ``device`` and predict each of ``splits``; arguments as for ``predict``."""
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    parts = {
        split: predict(model, store, split, batch_size=batch_size, device=device, precision=precision)
        for split in splits
    }
    return Predictions(tuple(store.classes), tuple(store.group_names), parts)
