r"""Learned widths in the training loop: what a bit saves, what it costs, and the landing on a budget.

Objective: CE + λ_f · fairness + R, where R is one of

- budget: R = π · (average width by parameter), π the price of a bit. In equilibrium every unit's saving per bit equals
  its price π n_u / N, the optimality condition of the allocation under the budget.
- pull: R = λ_b · Σ_u n_u (b_u − b_u⁰)² / Σ_u n_u, towards the assigned widths (Wørgaard & Selvan 2026).

Under a budget the saving of a bit must be told from noise. With e_u a unit's quantization error and g the gradient of
a batch of B samples, the loss reaches the width through the scalar z = g·e_u (``quantize.learned_widths``). Its mean,
the first-order derivative, is small beside its scatter: near a minimum E[z] ≈ eᵀHe but sd(z) ≈ √(eᵀFe / B), so one
unit's width would walk at random. The scatter itself is the answer: B · E[z²] ≈ eᵀFe, with F the Fisher matrix, which
equals H for the cross-entropy of a fitted model (Martens 2020, "New insights and perspectives on the natural gradient
method", JMLR 21), and is known to 20 % after 50 batches. So ∂L/∂b = −c · z with c = ln 2 · (M + 1)/(M + ρ/2) becomes
−c · B z². z is taken from the whole objective: an error that moves the gap between the groups is paid for like one that
moves the task.

π starts at what the first batches say one more bit everywhere would save and follows the drift of the average:
π ← π · exp(κ · drift per step). What is left of the drift is taken back after every step by shifting all widths by one
common amount, so that the average runs from the assigned one to the target over the first half of the learning steps
and stays there. After ``learn_share`` of the steps the widths are rounded and stay: under the budget with one common
shift, so that the average meets the target from below; the remaining steps fine-tune the weights at these widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairquant.config.quantization import BaqSection
from fairquant.quantize.learned_widths import (
    ENDS,
    UnitTerms,
    learned_quantizers,
    squash,
    squash_slope,
    unit_terms,
    unsquash,
)
from fairquant.quantize.width_budget import round_to_budget
from fairquant.train.hooks import Hooks
from fairquant.train.terms import LossBatch

GAIN = 5.0
"""κ: relative change of the price per bit that the average drifts."""
ARRIVAL = 0.5
"""Share of the learning steps after which the average is to be at the target."""
PRICING_STEPS = 10
"""Steps whose gradients set the first price; widths do not move in them."""


class WidthControl(Hooks):
    """Prices bits while the widths of ``model`` are learned, then lands them."""

    def __init__(self, model: nn.Module, sizes: Mapping[str, int], section: BaqSection) -> None:
        """Take the learned quantizers of ``model``; ``sizes`` are the parameters of one unit of each layer."""
        self.section = section
        self.quantizers = learned_quantizers(model)
        self.sizes = {name: sizes[name] for name in self.quantizers}
        self.start = {name: q.widths.detach().clone() for name, q in self.quantizers.items()}
        self.total = sum(self.sizes[name] * len(width) for name, width in self.start.items())
        self.assigned = float(self.average())
        self.target = self.assigned if section.target_bits is None else section.target_bits
        self.price = self.average().new_zeros(())
        self.savings: list[Tensor] = []
        self._saving = torch.zeros_like(self.price)
        self.step = self.last_learning_step = self.steps_per_epoch = self.batch = 0
        self._counts = [len(width) for width in self.start.values()]
        self._shares = torch.cat([torch.full_like(w, self.sizes[n] / self.total) for n, w in self.start.items()])
        self._refresh(self._lined_up("b_logit"), self._lined_up("d_logit"))

    @torch.no_grad()
    def average(self) -> Tensor:
        """Return the average by parameter of the whole widths in use, a scalar on the model's device."""
        bits = [self.sizes[name] * q.widths.round().sum() for name, q in self.quantizers.items()]
        return torch.stack(bits).sum() / self.total

    def term(self, batch: LossBatch, *_: object) -> Tensor:
        """Return the loss term that pulls; under a budget the price acts on the logits' gradients, and this is 0."""
        self.batch = len(batch.labels)
        if self._landed or self.section.regularizer == "budget":
            return batch.logits.new_zeros(())
        distances = [
            self.sizes[name] * (q.widths - self.start[name]).square().sum() for name, q in self.quantizers.items()
        ]
        return self.section.bits_weight * torch.stack(distances).sum() / self.total

    def begin(self, epochs: int, steps_per_epoch: int) -> None:
        """Fix the step at which the widths land."""
        self.steps_per_epoch = steps_per_epoch
        self.last_learning_step = max(1, round(self.section.learn_share * epochs * steps_per_epoch))

    def learning_rates(self) -> Sequence[tuple[Sequence[nn.Parameter], float]]:
        """Return the logits with their own rate."""
        logits = [logit for q in self.quantizers.values() for logit in (q.b_logit, q.d_logit)]
        return [(logits, self.section.logit_lr)]

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Under a budget, put scatter and price in the place of the width logits' gradients.

        With s = ∂b/∂b_logit and c·s = −∂L/∂b_logit / z, a logit's gradient is −c s z, and what takes its place
        (π n_u / N − c B z²) · s = π s n_u / N − B · gradient² / (c s).
        """
        learned = [q.b_logit for q in self.quantizers.values()]
        if self._moves and any(logit.grad is not None for logit in learned):
            given = [torch.zeros_like(logit) if logit.grad is None else logit.grad for logit in learned]
            saved = torch.cat(given).square_().mul_(self.batch).div_(self._terms.bits_error.view(-1))
            self._saving = -(saved / self._slope).sum()
            driven = torch.split(saved.addcmul_(self.price, self._shares * self._slope), self._counts)
            with_gradient = [n for n, logit in enumerate(learned) if logit.grad is not None]
            torch._foreach_copy_([given[n] for n in with_gradient], [driven[n] for n in with_gradient])

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Keep the logits in range, follow the price, land when it is time; all layers' logits in one row."""
        self.step = step
        widths, dead = self._lined_up("b_logit").clamp_(*ENDS), self._lined_up("d_logit").clamp_(*ENDS)
        if step <= self.last_learning_step and self.section.regularizer == "budget":
            widths = self._reprice(step, widths)
        self._put_back(widths, dead)
        if step == self.last_learning_step:
            self._land()
            widths = self._lined_up("b_logit")
        self._refresh(widths, dead)

    @torch.no_grad()
    def _lined_up(self, logit: str) -> Tensor:
        return torch.cat([getattr(quantizer, logit).detach() for quantizer in self.quantizers.values()])

    def _put_back(self, widths: Tensor, dead: Tensor) -> None:
        logits: list[Tensor] = [q.b_logit for q in self.quantizers.values()]
        logits += [q.d_logit for q in self.quantizers.values()]
        torch._foreach_copy_(logits, [*torch.split(widths, self._counts), *torch.split(dead, self._counts)])

    def _refresh(self, widths: Tensor, dead: Tensor) -> None:
        """Hand every layer its units' terms for the next step: small calls, made once for all layers."""
        low, high = self.section.bit_min, self.section.bit_max
        self._terms = unit_terms(widths, dead, low, high)
        self._slope = squash_slope(widths).mul_(high - low)
        by_layer = zip(*(torch.split(term, self._counts) for term in self._terms), strict=True)
        for quantizer, terms in zip(self.quantizers.values(), by_layer, strict=True):
            quantizer.hold(UnitTerms(*terms))

    def selectable(self, epoch: int) -> bool:
        """Only weights trained at the landed widths are kept."""
        return epoch * self.steps_per_epoch >= self.last_learning_step

    def state(self) -> Mapping[str, Any]:
        """Return price, step and the first steps' savings."""
        return {"price": self.price.item(), "step": self.step, "savings": [saving.item() for saving in self.savings]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up price and step; landed widths stay landed."""
        self.price.fill_(state["price"])
        self.step = int(state["step"])
        self.savings = [self.price.new_tensor(saving) for saving in state["savings"]]
        self._refresh(self._lined_up("b_logit"), self._lined_up("d_logit"))
        if self._landed:
            self._hold()

    @property
    def _moves(self) -> bool:
        """Whether the price moves widths: not where there is one width only."""
        return self.section.regularizer == "budget" and self.section.bit_min < self.section.bit_max

    @property
    def _landed(self) -> bool:
        return self.step >= self.last_learning_step

    def _reprice(self, step: int, logits: Tensor) -> Tensor:
        """Follow the price; return the width logits after the common shift (or, while pricing, those of the start)."""
        low, span = self.section.bit_min, self.section.bit_max - self.section.bit_min
        if step <= PRICING_STEPS or span == 0:
            if step <= PRICING_STEPS:
                self.savings.append(self._saving)
            self.price = torch.stack(self.savings).mean().clamp_min(torch.finfo(torch.float32).tiny)
            return unsquash((torch.cat(list(self.start.values())) - low) / max(span, 1))
        reached = min(1.0, step / max(1.0, ARRIVAL * self.last_learning_step))
        wanted = self.assigned + reached * (self.target - self.assigned)
        widths = low + span * squash(logits)
        drift = (self._shares * widths).sum() - wanted
        self.price = self.price * torch.exp(GAIN * drift)
        return unsquash(((widths - drift).clamp_(low, low + span) - low) / span)

    @torch.no_grad()
    def _land(self) -> None:
        """Round the widths for good; under a budget, to its target."""
        names = list(self.quantizers)
        soft = [self.quantizers[name].widths.double().cpu().numpy() for name in names]
        whole = np.rint(np.concatenate(soft)).astype(np.int64)
        if self.section.regularizer == "budget":
            sizes = np.repeat([self.sizes[name] for name in names], [len(part) for part in soft])
            low, high = self.section.bit_min, self.section.bit_max
            whole = round_to_budget(np.concatenate(soft), sizes, target=self.target, bit_min=low, bit_max=high)
        for name, part in zip(names, np.split(whole, np.cumsum([len(part) for part in soft])[:-1]), strict=True):
            self.quantizers[name].set_widths(torch.from_numpy(part))
        self._hold()

    def _hold(self) -> None:
        for quantizer in self.quantizers.values():
            quantizer.b_logit.requires_grad_(False)
