"""What a batch is trained on: the cross-entropy plus weighted terms, with what the terms remember and look up to.

Objective of a batch: CE(logits, labels; class weights) + Σ_i weight_i · term_i(batch, options_i, state_i).

A term may keep a state (a few tensors that it updates in place, without a graph) and may ask for the logits of a
teacher, the full-precision model. The teacher sees the images the student sees, augmented alike, in evaluation mode
and under the same autocast; it runs only where a term asks for it.

Several processes compute the logits of a batch in parts and exchange them: each then has the whole batch's, and the
loss, and what the terms remember, are one process's. Gradients of parameters are to be averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fairquant.config import Section
from fairquant.data.batches import Batch
from fairquant.devices import autocast
from fairquant.errors import UserError
from fairquant.parallel.collectives import gather_rows, slices
from fairquant.parallel.no_rows import NoRows

State = dict[str, Tensor]
"""What a term remembers from step to step: named tensors on the training device."""


@dataclass(frozen=True, eq=False)
class LossBatch:
    """What a loss sees of a batch of B samples, C classes and G groups.

    Attributes:
        logits: (B, C) float32, of the model that is trained, with its graph.
        labels: (B,) int64 in [0, C).
        groups: (B,) int64 in [0, ``n_groups``).
        n_groups: G of the data set; a batch need not hold all of them.
        teacher: (B, C) float32, the full-precision model's logits; None where no term asked for them.
        class_weights: (C,) float32, the cross-entropy's weight of each class; None for equal weights.
    """

    logits: Tensor
    labels: Tensor
    groups: Tensor
    n_groups: int
    teacher: Tensor | None = None
    class_weights: Tensor | None = None

    @property
    def teacher_logits(self) -> Tensor:
        """``teacher``; raises ``UserError`` where there is none."""
        if self.teacher is None:
            raise UserError("loss: got a batch without teacher; allowed: one with the full-precision model's logits")
        return self.teacher


LossFunction = Callable[[LossBatch, Any, State], Tensor]
"""``loss(batch, options, state) -> scalar``, differentiable in ``batch.logits``."""
StartFunction = Callable[[int, Any, torch.device], State]
"""``start(n_groups, options, device) -> state`` before the first step."""


@dataclass(frozen=True, eq=False)
class LossTerm:
    """One weighted term of the objective beside the cross-entropy.

    Its state lives as long as the term: a term that is trained with again goes on where it was.

    Attributes:
        weight: factor of the term.
        loss: the function.
        options: its settings.
        start: makes its state; None for a loss that remembers nothing.
        needs_teacher: whether it reads ``LossBatch.teacher``.
        state: what it remembers; empty until the first training begins.
    """

    weight: float
    loss: LossFunction
    options: Section | None = None
    start: StartFunction | None = None
    needs_teacher: bool = False
    state: State = field(default_factory=dict)

    @classmethod
    def of(cls, module: ModuleType, *, weight: float, options: Section | None = None) -> LossTerm:
        """Return the term of a loss plug-in, with its default options where none are given."""
        return cls(
            weight,
            module.loss,
            module.Options() if options is None else options,
            getattr(module, "start", None),
            getattr(module, "TEACHER", False),
        )

    @property
    def name(self) -> str:
        """The function's module and name."""
        return f"{self.loss.__module__}.{self.loss.__qualname__}"

    @property
    def key(self) -> list[Any]:
        """Weight, name and settings, JSON-like."""
        return [self.weight, self.name, None if self.options is None else self.options.model_dump(mode="json")]

    def begin(self, n_groups: int, device: torch.device) -> None:
        """Make the state, unless the term has been trained with already."""
        if self.start is not None and not self.state:
            self.state.update(self.start(n_groups, self.options, device))

    def load_state(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Take up a saved state."""
        self.state.clear()
        self.state.update({name: value.to(device) for name, value in state.items()})

    def __call__(self, batch: LossBatch) -> Tensor:
        """Return the weighted term, a scalar."""
        return self.weight * self.loss(batch, self.options, self.state)


class Objective:
    """The loss of a batch: cross-entropy plus terms, and the teacher they look up to."""

    def __init__(
        self,
        terms: Sequence[LossTerm],
        *,
        n_groups: int,
        device: torch.device,
        precision: str,
        teacher: nn.Module | None = None,
        class_weights: Tensor | None = None,
    ) -> None:
        """Begin the terms; a teacher that one of them needs goes to ``device`` and into evaluation mode, frozen.

        Raises:
            UserError: a term needs a teacher and there is none.
        """
        self.terms, self.n_groups = tuple(terms), n_groups
        self.device, self.precision = device, precision
        self.class_weights = None if class_weights is None else class_weights.to(device)
        needy = [term.name for term in self.terms if term.needs_teacher]
        if needy and teacher is None:
            raise UserError(f"training: got loss {needy[0]} without a teacher; allowed: with the full-precision model")
        self.teacher = teacher if needy else None
        if self.teacher is not None:
            self.teacher.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.teacher.eval().requires_grad_(False)
        for term in self.terms:
            term.begin(n_groups, device)

    @property
    def key(self) -> list[Any]:
        """Weights, names and settings of the terms, JSON-like."""
        return [term.key for term in self.terms]

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor the losses to come depend on beside the model: the teacher's and the states'."""
        found = {} if self.teacher is None else {f"teacher: {n}": t for n, t in self.teacher.state_dict().items()}
        for number, term in enumerate(self.terms):
            found |= {f"term {number}: {name}": tensor for name, tensor in term.state.items()}
        return found

    def __call__(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """Return the loss of ``batch`` under ``model``, a scalar with its graph; the terms' states move on.

        ``batch`` holds this process's part of the images, and the whole batch's labels and groups.
        """
        counts = [part.stop - part.start for part in slices(len(batch.labels))]
        with nullcontext() if len(batch.images) else NoRows():
            teacher = self._teach(batch.images)
            with autocast(self.device, self.precision):
                logits = model(batch.images)
        teacher = None if teacher is None else gather_rows(teacher, counts)
        logits = gather_rows(logits.float(), counts)
        loss = cross_entropy(logits, batch.labels, weight=self.class_weights)
        seen = LossBatch(logits, batch.labels, batch.groups, self.n_groups, teacher, self.class_weights)
        for term in self.terms:
            loss = loss + term(seen)
        return loss

    @torch.no_grad()
    def _teach(self, images: Tensor) -> Tensor | None:
        if self.teacher is None:
            return None
        with autocast(self.device, self.precision):
            logits: Tensor = self.teacher(images)
        return logits.float()

    def state(self) -> list[State]:
        """Return what the terms remember, in their order."""
        return [dict(term.state) for term in self.terms]

    def load_state(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Take up what ``state`` returned."""
        for term, state in zip(self.terms, states, strict=True):
            term.load_state(state, self.device)
