"""The rounds of iterative quantization: what is frozen, what was trained, and where a killed run goes on."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping

import numpy as np
import torch

from fairquant.allocate.bitmap import unit_shape
from fairquant.allocate.rounds import OPEN, Bits, freeze_next, mix_of
from fairquant.errors import UserError
from fairquant.models.layers import quantizable_layers, weight_parameter
from fairquant.modes._activations import ActivationPlan
from fairquant.modes._attach import fold
from fairquant.modes._job import QuantizeJob
from fairquant.modes._terms import training_terms
from fairquant.modes._widths import held_widths, require_free
from fairquant.quantize.frozen import attach_frozen, freeze, frozen_units
from fairquant.train import checkpoint
from fairquant.train.history import EpochRow, History
from fairquant.train.processes import parallel_key

LOG = logging.getLogger(__name__)


def epochs_of_rounds(epochs: int, rounds: int) -> list[int]:
    """Share ``epochs`` among at most so many ``rounds``, at least one each, the later ones getting what is left over.

    >>> epochs_of_rounds(5, 2), epochs_of_rounds(1, 3)
    ([2, 3], [1])
    """
    rounds = min(rounds, epochs)
    return [epochs * (r + 1) // rounds - epochs * r // rounds for r in range(rounds)]


class Rounds:
    """State of an iterative run on ``job.model``; found again after a kill."""

    def __init__(self, job: QuantizeJob) -> None:
        """Prepare the model and take up finished rounds. Raises ``ConfigError`` as ``held_widths`` does."""
        if job.ranking is None:
            raise UserError("iterative_qat: got a job without ranking; allowed: one that measures importance")
        self.job, self.rank = job, job.ranking
        self.terms, self.teacher = training_terms(job)  # before quantizers are attached
        self.activations = ActivationPlan.of(job)
        fold(job, job.bits)
        job.model.to(job.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        layers = quantizable_layers(job.model)
        self.held = held_widths(job, list(layers))
        require_free(self.held, list(layers), "iterative_qat")
        self.shapes = {name: tuple(weight_parameter(m).shape) for name, m in layers.items() if name not in self.held}
        self.number = len(epochs_of_rounds(job.training.epochs, job.section.iterative.rounds))
        self.rows: list[EpochRow] = []
        self.best_epoch = self.done = 0
        key = self._key()
        attach_frozen(job.model, job.bits.granularity, scale=job.section.scale, percentile=job.section.percentile)
        freeze(job.model, {name: job.bits.layers[name] if name in self.held else self._open(name) for name in layers})
        self.model = self.activations.attach(job.model)
        self.activations.calibrate(self.model)
        self.directory = None if job.checkpoint_dir is None else job.checkpoint_dir / key
        self._resume()

    def freeze(self) -> None:
        """Freeze the next share of the units, least important first."""
        units = self.rank(self.model, self.shapes)
        frozen = {name: layer.bits.cpu().numpy() for name, layer in frozen_units(self.model).items()}
        mix = mix_of(self._line_up(self.job.bits.layers), units.sizes)
        now = self._line_up(frozen)
        widths = freeze_next(units.importance, units.sizes, now, mix, share=(self.done + 1) / self.number)
        LOG.info(
            "round %d of %d: %d of %d units frozen",
            self.done + 1,
            self.number,
            int((widths != OPEN).sum()),
            len(widths),
        )
        freeze(self.model, frozen | dict(units.scatter(widths).layers))
        self.activations.calibrate(self.model)

    def finish(self, history: History) -> None:
        """Take in a round's training and save where the run stands."""
        first = len(self.rows)
        self.rows += [dataclasses.replace(row, epoch=first + row.epoch) for row in history.rows]
        self.best_epoch = first + history.best_epoch
        self.done += 1
        if self.directory is not None and self.done < self.number:
            rows = [row.to_dict() for row in self.rows]
            state = {"model": self.model.state_dict(), "rows": rows, "best_epoch": self.best_epoch}
            state["terms"] = [term.state for term in self.terms]
            checkpoint.save(self.directory, {**state, "done": self.done})

    def close(self) -> None:
        """Remove what was saved."""
        if self.directory is not None:
            checkpoint.remove(self.directory)

    def history(self) -> History:
        """Return all rounds' epochs, numbered through; the last round's kept epoch is the run's."""
        return History(tuple(self.job.store.group_names), tuple(self.rows), self.best_epoch)

    def _resume(self) -> None:
        state = checkpoint.load(self.directory) if self.directory is not None else None
        if state is not None:
            self.model.load_state_dict(state["model"])
            for term, remembered in zip(self.terms, state["terms"], strict=True):
                term.load_state(remembered, self.job.device)
            self.rows = [EpochRow(**row) for row in state["rows"]]
            self.best_epoch, self.done = state["best_epoch"], state["done"]
            LOG.info("resuming after round %d of %d", self.done, self.number)

    def _key(self) -> str:
        job = self.job
        params = job.section.model_dump() | {"seed": job.seed, "precision": job.precision, "device": job.device.type}
        params |= {"debug": job.debug, "ranking": self.rank.key, "protect": job.protect.model_dump()}
        params |= {"parallel": parallel_key(job.parallel), "compile": job.compile_model}
        params["held"] = list(job.bits.held)
        params["bits"] = {name: bits.tolist() for name, bits in job.bits.layers.items()}
        return checkpoint.key("rounds", params, str(job.store.meta["checksum"]), job.model.state_dict())

    def _open(self, name: str) -> Bits:
        return np.full(unit_shape(self.job.bits.granularity, self.shapes[name]), OPEN, dtype=np.uint8)

    def _line_up(self, layers: Mapping[str, Bits]) -> Bits:
        return np.concatenate([layers[name].reshape(-1) for name in self.shapes])
