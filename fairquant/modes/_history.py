"""The history of a mode that trains nothing: one row, epoch 0, the quantized model as it is."""

from __future__ import annotations

from fairquant.modes._job import QuantizeJob, QuantizeResult
from fairquant.train.history import EpochRow, History


def with_start(job: QuantizeJob, result: QuantizeResult) -> History:
    """Return the result's history; one without rows gets a row for epoch 0, measured on the validation split.

    The row's learning rate is 0 and it has no training loss: there was no training.
    """
    if result.history.rows:
        return result.history
    import torch
    from torch.nn.functional import cross_entropy

    from fairquant.train.predict import predict

    size = job.section.batch_size
    part = predict(result.model, job.store, "val", batch_size=size, device=job.device, precision=job.precision)
    loss = cross_entropy(torch.from_numpy(part.logits).double(), torch.from_numpy(part.labels)).item()
    groups = tuple(job.store.group_names)
    row = EpochRow.measure(part, groups, epoch=0, lr=0.0, train_loss=None, val_loss=loss)
    return History(groups, (row,), 0)
