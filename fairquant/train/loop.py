"""The one training loop: cross-entropy plus weighted loss terms, AdamW, best epoch kept, exact resume.

What is minimised, and what the terms remember, is ``fairquant.train.terms``'s; what several processes do together is
``fairquant.train.processes``'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fairquant.config.parallel import ParallelSection
from fairquant.config.schema import TrainSection
from fairquant.data.batches import Batch, iterate, n_batches
from fairquant.data.store import Store
from fairquant.errors import DataError
from fairquant.parallel.batch_norm import global_batch_norm
from fairquant.parallel.collectives import is_first, world_size
from fairquant.parallel.gradients import GradientAverage
from fairquant.train import checkpoint
from fairquant.train.compiled import compiled
from fairquant.train.finite import not_finite, require_finite
from fairquant.train.history import EpochRow, History, describe
from fairquant.train.hooks import Hooks
from fairquant.train.predict import predict
from fairquant.train.processes import (
    ALONE,
    average_statistics,
    epoch_seeds,
    last_is_left_out,
    parallel_key,
    require_same_end,
    require_same_run,
    same_everywhere,
)
from fairquant.train.schedule import class_weights, make_optimizer, make_scheduler
from fairquant.train.terms import LossTerm, Objective

LOG = logging.getLogger(__name__)
CHECK_EVERY = 50
"""Steps between looks at the loss: looking waits for the accelerator."""


def fit(
    model: nn.Module,
    store: Store,
    *,
    section: TrainSection,
    seed: int,
    device: torch.device,
    precision: str = "fp32",
    terms: Sequence[LossTerm] = (),
    teacher: nn.Module | None = None,
    checkpoint_dir: Path | None = None,
    progress: bool = True,
    log: Callable[[str], None] | None = None,
    hooks: Hooks | None = None,
    parallel: ParallelSection = ALONE,
    compile_model: bool = False,
) -> History:
    """Train ``model`` in place on the train split and select the epoch on the val split.

    The model ends on ``device``, in eval mode, with the weights of the epoch of highest overall validation accuracy
    (ties: lower validation loss, then the earlier epoch) among those ``hooks`` allows. With ``section.patience`` > 0
    training stops after that many of these epochs without a lower validation loss. ``section.epochs`` 0 leaves the
    weights as they are.

    In several processes all call this alike; each computes a part of every batch, and all end with the same weights.

    Args:
        model: classifier (B, 3, H, W) -> (B, C); parameters without ``requires_grad`` stay as they are.
        store: the prepared data.
        section: epochs, batch size, learning rate, schedule, class weights, patience, augmentation.
        seed: of batch order, augmentation and dropout (each process has masks of its own); with the epoch's number it
            fixes every random draw.
        device: where to train.
        precision: fp32, or bf16 for autocast in forward and validation.
        terms: what is added to the cross-entropy; they end with what they remember after the last step.
        teacher: the full-precision model (B, 3, H, W) -> (B, C), for terms that need it, which then ends on ``device``,
            in eval mode and without ``requires_grad``; its weights never change.
        checkpoint_dir: folder below which the run is saved after each epoch and resumed from, bit for bit, in a
            folder of its own named by ``checkpoint.key``; removed at the end. Stages pass ``checkpoint.root()``.
        progress: show a bar when stderr is a terminal.
        log: receives one line per epoch, in the first process; default: this module's logger.
        hooks: what a mode does at epochs and steps, and which parameters have a learning rate of their own.
        parallel: how gradients travel, and what batch norm sees of a batch, where there are several processes.
        compile_model: whether forward and backward are compiled.

    Raises:
        UserError: the loss is not finite, a term needs a teacher and there is none, or the processes do not agree.
        DataError: fewer than two training samples (of each process, for local batch norm), or no validation sample.
    """
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.eval()
    if section.epochs == 0:
        return History(groups=tuple(store.group_names))
    run = _Run(
        model, store, section, seed, device, precision, terms, teacher, checkpoint_dir, hooks or Hooks(), parallel,
        compile_model,
    )  # fmt: skip
    total, silent = section.epochs * run.steps, not (progress and is_first())
    devices = [device] if device.type == "cuda" else []
    with (
        closing(run.gradients),
        torch.random.fork_rng(devices),
        logging_redirect_tqdm(),
        tqdm(total=total, initial=run.done * run.steps, unit="batch", disable=silent or None) as bar,
    ):
        while not run.finished:
            row = run.train_epoch(bar)
            if is_first():
                (log or LOG.info)(describe(row, section.epochs))
    return run.close()


class _Run:
    """State of one training run: model, optimizer, schedule, finished epochs and the best weights so far."""

    def __init__(
        self,
        model: nn.Module,
        store: Store,
        section: TrainSection,
        seed: int,
        device: torch.device,
        precision: str,
        terms: Sequence[LossTerm],
        teacher: nn.Module | None,
        directory: Path | None,
        hooks: Hooks,
        parallel: ParallelSection,
        compile_model: bool,
    ) -> None:
        self.hooks, self.parallel, self.compile_model = hooks, parallel, compile_model
        self.model, self.store, self.section, self.seed = model, store, section, seed
        self.device, self.precision = device, precision
        self.train = store.indices("train")
        if len(self.train) < 2 or not len(store.indices("val")):
            sizes = f"{len(self.train)} train and {len(store.indices('val'))} val samples"
            raise DataError(f"training: got {sizes}; allowed: at least 2 and 1")
        self.drop_last = last_is_left_out(len(self.train), section.batch_size, parallel)
        self.steps = n_batches(len(self.train), section.batch_size, self.drop_last)
        weights = class_weights(store.labels[self.train], len(store.classes), section.class_weights)
        self.objective = Objective(
            terms,
            n_groups=len(store.group_names),
            device=device,
            precision=precision,
            teacher=teacher,
            class_weights=weights,
        )
        self.optimizer = make_optimizer(model, section, device, learning_rates=hooks.learning_rates())
        self.scheduler = make_scheduler(self.optimizer, section, steps_per_epoch=self.steps)
        same_everywhere(model)
        self.gradients = GradientAverage(model.parameters(), strategy=parallel.strategy)
        self.norms = global_batch_norm if parallel.batch_norm == "global" else nullcontext
        self.forward = compiled(model, compile_model)
        self.rows: list[EpochRow] = []
        self.best_epoch = 0
        self.best_state: dict[str, Tensor] = {}
        key = self._key() if directory is not None or world_size() > 1 else ""
        require_same_run(key)
        self.directory = None if directory is None else directory / key
        hooks.begin(section.epochs, self.steps)
        self._resume()

    @property
    def done(self) -> int:
        """Number of finished epochs."""
        return len(self.rows)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done or the validation loss has stalled for ``patience`` epochs."""
        if self.done == self.section.epochs:
            return True
        if not self.section.patience or not self._selectable:
            return False
        lowest = min(self._selectable, key=lambda row: row.val_loss).epoch
        return self.done - lowest >= self.section.patience

    @property
    def _selectable(self) -> list[EpochRow]:
        """Finished epochs whose weights may be kept."""
        return [row for row in self.rows if self.hooks.selectable(row.epoch)]

    def train_epoch(self, bar: tqdm[Any]) -> EpochRow:
        """Train one epoch, validate, keep the weights if they are the best, save a checkpoint."""
        epoch = self.done + 1
        own_seed, shuffle_seed = epoch_seeds(self.seed, epoch)
        torch.manual_seed(own_seed)
        self.model.train()
        self.hooks.epoch_start(epoch)
        lr = float(self.optimizer.param_groups[0]["lr"])
        train_loss = self._train_batches(epoch, shuffle_seed, bar)
        average_statistics(self.model, self.parallel)
        row = self._validate(epoch, lr, train_loss)
        self.rows.append(row)
        if row is max(self._selectable, key=lambda row: (row.val_accuracy, -row.val_loss), default=None):
            self.best_epoch = epoch
            self.best_state = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        if self.directory is not None and not self.finished:
            checkpoint.save(self.directory, self._state())
        return row

    def _train_batches(self, epoch: int, shuffle_seed: int, bar: tqdm[Any]) -> float:
        losses: list[Tensor] = []
        sizes: list[int] = []
        batches = iterate(
            self.store,
            self.train,
            batch_size=self.section.batch_size,
            device=self.device,
            shuffle_seed=shuffle_seed,
            augment=self.section.augment,
            drop_last=self.drop_last,
            divided=True,
        )
        for batch in batches:
            losses.append(self._step(batch, (epoch - 1) * self.steps + len(losses) + 1))
            sizes.append(len(batch.labels))
            bar.update()
            if len(losses) % CHECK_EVERY == 0:
                require_finite(losses[-CHECK_EVERY:], epoch, len(losses) - CHECK_EVERY + 1)
        checked = len(losses) - len(losses) % CHECK_EVERY
        require_finite(losses[checked:], epoch, checked + 1)
        return float(np.average(torch.stack(losses).double().cpu().numpy(), weights=sizes))

    def _step(self, batch: Batch, number: int) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with self.norms():
            loss = self.objective(self.forward, batch)
        torch.autograd.backward(loss)
        self.gradients.finish(idle=len(batch.images) == 0)
        self.hooks.before_step(number)
        self.optimizer.step()
        self.scheduler.step()
        self.hooks.after_step(number)
        return loss.detach()

    def _validate(self, epoch: int, lr: float, train_loss: float) -> EpochRow:
        size = max(self.section.batch_size, 64)
        part = predict(
            self.model,
            self.store,
            "val",
            batch_size=size,
            device=self.device,
            precision=self.precision,
            finite=False,
        )
        loss = cross_entropy(torch.from_numpy(part.logits).double(), torch.from_numpy(part.labels)).item()
        if not np.isfinite(loss):
            raise not_finite(f"validation loss after epoch {epoch}", loss)
        return EpochRow.measure(part, self.store.group_names, epoch=epoch, lr=lr, train_loss=train_loss, val_loss=loss)

    def _key(self) -> str:
        params = self.section.model_dump() | {"seed": self.seed, "precision": self.precision}
        params |= {"terms": self.objective.key, "device": self.device.type, "compile": self.compile_model}
        params |= {"parallel": parallel_key(self.parallel)}
        tensors = self.model.state_dict() | self.objective.tensors()
        return checkpoint.key("fit", params, str(self.store.meta["checksum"]), tensors)

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rows": [row.to_dict() for row in self.rows],
            "best_epoch": self.best_epoch,
            "best_state": self.best_state,
            "hooks": dict(self.hooks.state()),
            "terms": self.objective.state(),
        }

    def _resume(self) -> None:
        state = checkpoint.load(self.directory) if self.directory is not None else None
        if state is None:
            return
        self.model.train()
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.rows = [EpochRow(**row) for row in state["rows"]]
        self.best_epoch = state["best_epoch"]
        self.best_state = state["best_state"]
        self.hooks.load_state(state["hooks"])
        self.objective.load_state(state["terms"])
        LOG.info("resuming after epoch %d of %d", self.done, self.section.epochs)

    def close(self) -> History:
        """Put the best weights back, remove the checkpoint and return what happened."""
        self.model.train()  # whatever a module caches in eval mode is dropped before the weights change
        self.model.load_state_dict(self.best_state)
        self.model.eval()
        require_same_end(self.model.state_dict())
        if self.directory is not None:
            checkpoint.remove(self.directory)
        return History(tuple(self.store.group_names), tuple(self.rows), self.best_epoch)
