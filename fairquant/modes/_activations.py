"""Activations in a mode: asked for or not, which images calibrate them, and when.

A mode makes its plan while the job's model is still the full-precision one, rounds the weights, and then applies it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fairquant.config.quantization import OFF

if TYPE_CHECKING:
    from torch import nn

    from fairquant.modes._job import QuantizeJob


@dataclass(frozen=True)
class ActivationPlan:
    """What happens to a job's activations.

    Attributes:
        job: whose settings count.
        bits: the width; 32 leaves activations alone.
        dynamic: whether ranges are those of each input.
        accuracy: of the full-precision model, per group on the validation split, where calibration asks for it.
    """

    job: QuantizeJob
    bits: int
    dynamic: bool
    accuracy: tuple[float, ...] | None

    @classmethod
    def of(cls, job: QuantizeJob, *, default: int = OFF, dynamic: bool = False) -> ActivationPlan:
        """Plan for ``job``, whose model is still full precision; ``default`` is the width where none is given."""
        given = job.section.activations.bits
        bits = default if given is None else given
        needed = bits != OFF and not dynamic and job.section.calibration.sampling == "worst_group"
        return cls(job, bits, dynamic, _accuracy(job) if needed else None)

    def apply(self, model: nn.Module) -> nn.Module:
        """Return ``model``, whose weights are rounded, with calibrated activation quantizers (or as it is)."""
        model = self.attach(model)
        self.calibrate(model)
        return model

    def attach(self, model: nn.Module) -> nn.Module:
        """Return ``model`` with activation quantizers that have no range yet (or as it is)."""
        if self.bits == OFF:
            return model
        from fairquant.quantize.activate import attach_activations

        section = self.job.section.activations
        how = section.model_dump(include={"scheme", "observer", "momentum", "percentile", "points"})
        return attach_activations(model, bits=self.bits, dynamic=self.dynamic, **how)

    def calibrate(self, model: nn.Module) -> None:
        """Find the ranges of the quantizers that ``attach`` made, whatever they have seen before."""
        if self.bits == OFF:
            return
        from fairquant.train.calibrate import calibrate

        job = self.job
        calibrate(
            model,
            job.store,
            job.section.calibration,
            device=job.device,
            precision=job.precision,
            seed=job.seed,
            groups_accuracy=self.accuracy,
        )


def _accuracy(job: QuantizeJob) -> tuple[float, ...]:
    """Return the accuracy of the job's model per group on the validation split; NaN for a group without images."""
    import numpy as np
    import torch

    from fairquant.train.predict import predict

    job.model.to(job.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    size = job.section.batch_size
    part = predict(job.model, job.store, "val", batch_size=size, device=job.device, precision=job.precision)
    right = part.logits.argmax(axis=1) == part.labels
    members = [part.groups == code for code in range(len(job.store.group_names))]
    return tuple(float(np.mean(right[member])) if member.any() else float("nan") for member in members)
