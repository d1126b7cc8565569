"""iterative_qat: units are frozen at their widths in rounds, least important first (FairQuant, arXiv 2602.23192).

In each of n rounds the importance of the units still open is measured on the current model, the least important of
them are quantized and frozen for good, and the rest is trained on in full precision with CE + λ · fairness loss, so
that it makes up for what was frozen (incremental network quantization, Zhou et al. 2017, arXiv 1702.03044). The mix of
widths is the assigned one; which unit gets which of them is decided by the importance at the time it is frozen. After
the last round everything is frozen, and its epochs train what is never quantized: biases and normalisation.

Quantized activations are calibrated before the first round, and anew whenever units were frozen.

What the fairness loss remembers (group weights, multipliers) is carried from round to round, as the last step left it,
and the teacher is the full-precision model that the first round started from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairquant.modes._job import QuantizeJob, QuantizeResult
from fairquant.modes._train import train

if TYPE_CHECKING:
    from fairquant.modes._rounds import Rounds


def quantize(job: QuantizeJob) -> QuantizeResult:
    """Freeze and train in rounds; the epochs are shared among them, the later ones getting what is left over.

    Raises ``ConfigError`` for a protection that matches no layer.
    """
    from fairquant.modes._rounds import Rounds, epochs_of_rounds
    from fairquant.quantize.frozen import settle_frozen

    rounds = Rounds(job)
    for epochs in epochs_of_rounds(job.training.epochs, job.section.iterative.rounds)[rounds.done :]:
        _freeze_and_train(job, rounds, epochs)
    settle_frozen(rounds.model, job.bits.granularity)
    rounds.close()
    return QuantizeResult(rounds.model.eval(), rounds.history())


def _freeze_and_train(job: QuantizeJob, rounds: Rounds, epochs: int) -> None:
    rounds.freeze()
    rounds.finish(train(job, rounds.model, rounds.terms, rounds.teacher, epochs=epochs))
