"""Run a model over splits of the store, in order, without augmentation.

Several processes share the batches, whole, so that every forward pass is one that a single process makes: the same
logits, bit for bit, of every sample once, in every process.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fairquant.data.batches import iterate, n_batches
from fairquant.data.store import Store
from fairquant.devices import autocast
from fairquant.errors import UserError
from fairquant.parallel.collectives import from_first, gather_rows, share, world_size
from fairquant.predictions import Predictions, SplitPredictions


@torch.no_grad()
def predict(
    model: nn.Module,
    store: Store,
    split: str,
    *,
    batch_size: int,
    device: torch.device,
    precision: str = "fp32",
    finite: bool = True,
) -> SplitPredictions:
    """Return the model's logits on ``split`` in eval mode; the model's own mode is left as it was.

    Args:
        model: classifier (B, 3, H, W) -> (B, C), already on ``device``; the same in every process.
        store: the prepared data.
        split: train | val | test.
        batch_size: samples per forward; in fp32 on the CPU it changes logits by rounding at most.
        device: where the model lives.
        precision: fp32, or bf16 for autocast; logits are float32 either way.
        finite: False for a caller that tells NaN and infinite logits itself.

    Raises:
        UserError: a logit is NaN or infinite: nothing that is computed from it would be a measurement.
    """
    indices = store.indices(split)
    mine = share(n_batches(len(indices), batch_size))
    was_training = model.training
    model.eval()
    logits = []
    try:
        for batch in iterate(store, indices, batch_size=batch_size, device=device, numbers=mine):
            with autocast(device, precision):
                output = model(batch.images)
            logits.append(output.float())
    finally:
        model.train(was_training)
    classes = from_first(logits[0].shape[1] if logits else len(store.classes))  # the first has a batch if any has
    stacked = torch.cat(logits) if logits else torch.zeros((0, classes), device=device)
    ordered = _of_all(stacked, len(indices), batch_size)
    unusable = int((~np.isfinite(ordered).all(axis=1)).sum()) if finite else 0
    if unusable:
        raise UserError(
            f"{split}: got outputs that are not finite for {unusable} of {len(indices)} images; allowed: a model with "
            "finite outputs (its weights or statistics overflowed: train it anew, or with a lower lr)"
        )
    return SplitPredictions(ordered, store.labels[indices], store.groups[indices], indices)


def _of_all(mine: Tensor, count: int, batch_size: int) -> npt.NDArray[np.float32]:
    """Return the rows of all processes, (count, C), in the order of the split."""
    owner = np.arange(count) // batch_size % world_size()
    gathered = gather_rows(mine, np.bincount(owner, minlength=world_size()).tolist()).cpu().numpy()
    ordered = np.empty_like(gathered)
    ordered[np.argsort(owner, kind="stable")] = gathered
    return ordered


def predict_splits(
    model: nn.Module,
    store: Store,
    splits: Sequence[str] = ("val", "test"),
    *,
    batch_size: int,
    device: torch.device,
    precision: str,
) -> Predictions:
    """Move ``model`` to ``device`` and predict each of ``splits``; arguments as for ``predict``."""
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    parts = {
        split: predict(model, store, split, batch_size=batch_size, device=device, precision=precision)
        for split in splits
    }
    return Predictions(tuple(store.classes), tuple(store.group_names), parts)
