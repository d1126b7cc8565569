"""Distillation: the student's class probabilities are drawn to the teacher's, softened by a temperature.

    term = T² · mean_i KL(softmax(teacher_i / T) ‖ softmax(student_i / T)),

in float32; T² keeps the gradient's size about independent of T (Hinton, Vinyals & Dean 2015, "Distilling the knowledge
in a neural network", arXiv 1503.02531). Class weights and groups do not enter: the teacher's answer counts for every
sample alike. Settings: quantize.distill. The signature is that of a loss plug-in (``fairquant.train.losses``).

>>> import torch
>>> from fairquant.train.terms import LossBatch
>>> one = torch.zeros(1, dtype=torch.int64)
>>> batch = LossBatch(torch.zeros(1, 2), one, one, 1, teacher=torch.tensor([[2 * torch.log(torch.tensor(3.0)), 0.0]]))
>>> round(loss(batch, DistillSection(temperature=2.0), {}).item(), 4)  # 4 · (3/4 ln 3/2 + 1/4 ln 1/2)
0.5232
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from fairquant.config.quantization import DistillSection
from fairquant.train.terms import LossBatch, State

TEACHER = True
Options = DistillSection


def loss(batch: LossBatch, options: DistillSection, state: State) -> Tensor:
    """Return T² · KL(teacher ‖ student), the mean over samples, a scalar >= 0.

    Raises ``UserError`` for a batch without teacher.
    """
    temperature = options.temperature
    student = log_softmax(batch.logits / temperature, dim=1)
    teacher = log_softmax(batch.teacher_logits / temperature, dim=1)
    return temperature**2 * kl_div(student, teacher, reduction="batchmean", log_target=True)
