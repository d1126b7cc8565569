"""The training that modes share: the one loop, with the job's data, settings and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from fairquant.modes._job import QuantizeJob
    from fairquant.train.history import History
    from fairquant.train.hooks import Hooks
    from fairquant.train.terms import LossTerm


def train(
    job: QuantizeJob,
    model: nn.Module,
    terms: Sequence[LossTerm],
    teacher: nn.Module | None,
    *,
    hooks: Hooks | None = None,
    epochs: int | None = None,
) -> History:
    """Train ``model`` in place and return what happened; the epoch with the best validation accuracy is kept.

    Args:
        job: data and settings.
        model: with its quantizers.
        terms: what is added to the cross-entropy, and
        teacher: what they need, as ``training_terms`` returns them.
        hooks: what the mode does in the loop.
        epochs: instead of ``job.training``'s.
    """
    from fairquant.train.loop import fit

    section = job.training if epochs is None else job.section.model_copy(update={"epochs": epochs})
    return fit(
        model,
        job.store,
        section=section,
        seed=job.seed,
        device=job.device,
        precision=job.precision,
        terms=terms,
        teacher=teacher,
        checkpoint_dir=job.checkpoint_dir,
        hooks=hooks,
        parallel=job.parallel,
        compile_model=job.compile_model,
    )
