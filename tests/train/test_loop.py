"""``fit``: it learns, it repeats itself exactly, it keeps the best epoch, it stops when it should."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fairquant.data.batches import iterate
from fairquant.errors import DataError, UserError
from fairquant.train import loop
from fairquant.train.history import EpochRow
from fairquant.train.hooks import Hooks
from fairquant.train.loop import fit
from fairquant.train.losses import gap, none
from fairquant.train.predict import predict
from fairquant.train.schedule import make_optimizer, make_scheduler
from fairquant.train.terms import LossTerm

CPU = torch.device("cpu")


def run(network, store, section, **more):
    model = network()
    return model, fit(model, store, section=section, seed=more.pop("seed", 0), device=CPU, **more)


def same_state(one: nn.Module, two: nn.Module) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_learns_a_separable_problem(network, store, section):
    model, history = run(network, store, section(epochs=8))
    assert history.best.val_accuracy > 0.95
    assert history.rows[-1].train_loss < 0.5 * history.rows[0].train_loss
    part = predict(model, store, "test", batch_size=16, device=CPU)
    assert (part.predicted == part.labels).mean() > 0.95
    assert not model.training


@pytest.mark.parametrize("augment", ["off", "light"])
def test_equal_runs_are_equal_byte_for_byte(network, store, section, tmp_path, augment):
    models = []
    for name in ("one", "two"):
        torch.manual_seed(ord(name[0]))  # the global generator's state does not matter
        model, history = run(network, store, section(epochs=2, augment=augment), terms=[LossTerm.of(gap, weight=1.0)])
        history.write_curve(tmp_path / f"{name}.csv")
        history.write_log(tmp_path / f"{name}.log")
        models.append(model)
    assert same_state(*models)
    for suffix in ("csv", "log"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


def test_seed_matters_and_global_generator_is_left_alone(network, store, section):
    state = torch.get_rng_state()
    one, _ = run(network, store, section(epochs=1))
    assert torch.equal(torch.get_rng_state(), state)
    two, _ = run(network, store, section(epochs=1), seed=1)
    assert not same_state(one, two)


def test_one_epoch_equals_a_plain_torch_loop(store, section):
    """Oracle: hand-written AdamW steps over the same batches, decay on the weight alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    plain = copy.deepcopy(model)
    settings = section(epochs=1, schedule="constant", weight_decay=0.1)
    history = fit(model, store, section=settings, seed=3, device=CPU, terms=[LossTerm.of(gap, weight=0.5)])
    weight, bias = plain[1].weight, plain[1].bias
    groups = [{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, fused=False, foreach=False)
    shuffle = int(np.random.SeedSequence([3, 1]).generate_state(2)[1])
    losses = []
    for batch in iterate(store, store.indices("train"), batch_size=32, device=CPU, shuffle_seed=shuffle):
        logits = plain(batch.images)
        means = [cross_entropy(logits[batch.groups == g], batch.labels[batch.groups == g]) for g in (0, 1)]
        loss = cross_entropy(logits, batch.labels) + 0.5 * (max(means) - min(means))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    torch.testing.assert_close(model[1].weight, weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[1].bias, bias, rtol=1e-5, atol=1e-6)
    assert history.rows[0].train_loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_row_holds_the_numbers_of_the_kept_model(network, store, section):
    model, history = run(network, store, section())
    part = predict(model, store, "val", batch_size=64, device=CPU)
    right = part.predicted == part.labels
    row = history.best
    assert row.val_accuracy == right.mean()
    assert row.val_group_accuracy == {name: right[part.groups == g].mean() for g, name in enumerate(store.group_names)}
    assert row.val_worst_group_accuracy == min(row.val_group_accuracy.values())
    expected = cross_entropy(torch.from_numpy(part.logits).double(), torch.from_numpy(part.labels))
    assert row.val_loss == pytest.approx(float(expected), rel=1e-12)


def scripted(monkeypatch, numbers):
    """Let validation report the (accuracy, loss) of each epoch in turn."""
    turn = iter(numbers)

    def measure(self, epoch, lr, train_loss):
        accuracy, loss = next(turn)
        return EpochRow(epoch, lr, train_loss, loss, accuracy, accuracy, {})

    monkeypatch.setattr(loop._Run, "_validate", measure)


def test_best_epoch_is_kept_ties_go_to_the_lower_loss(network, store, section, monkeypatch, at_epoch):
    states = []
    scripted(monkeypatch, [(0.5, 0.9), (0.8, 0.6), (0.8, 0.5), (0.8, 0.5), (0.7, 0.1)])
    model = network()

    def remember(epoch):
        states.append(copy.deepcopy(model.state_dict()))

    history = fit(model, store, section=section(epochs=5), seed=0, device=CPU, hooks=at_epoch(remember))
    assert history.best_epoch == 3
    assert len(history.rows) == 5
    after_epoch_3 = states[3]
    assert all(torch.equal(value, after_epoch_3[name]) for name, value in model.state_dict().items())


def test_patience_counts_epochs_without_a_lower_validation_loss(network, store, section, monkeypatch):
    numbers = [(0.5, 0.9), (0.5, 0.8), (0.6, 0.85), (0.9, 0.8), (0.5, 0.1)]
    scripted(monkeypatch, numbers)
    _, history = run(network, store, section(epochs=5, patience=2))
    assert [row.epoch for row in history.rows] == [1, 2, 3, 4]
    assert history.best_epoch == 4
    scripted(monkeypatch, numbers)
    assert len(run(network, store, section(epochs=5, patience=0))[1].rows) == 5


def test_zero_epochs_leave_the_weights(network, store, section):
    model, history = run(network, store, section().model_copy(update={"epochs": 0}))
    assert same_state(model, network().to(memory_format=torch.channels_last))
    assert (history.rows, history.best_epoch, history.best) == ((), 0, None)
    assert history.groups == store.group_names


def test_hook_and_log_see_every_epoch(network, store, section, at_epoch):
    epochs, lines = [], []
    _, history = run(network, store, section(epochs=2), hooks=at_epoch(epochs.append), log=lines.append)
    assert epochs == [1, 2]
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert history.rows[0].lr == 0.01


class Recorder(Hooks):
    """Notes what the loop tells; only epochs after the second may be kept."""

    def __init__(self):
        self.steps, self.begun = [], None

    def begin(self, epochs, steps_per_epoch):
        self.begun = (epochs, steps_per_epoch)

    def after_step(self, step):
        self.steps.append(step)

    def selectable(self, epoch):
        return epoch > 2


def test_hooks_are_told_the_length_and_every_step(network, store, section):
    recorder = Recorder()
    run(network, store, section(epochs=3), hooks=recorder)
    assert recorder.begun == (3, 3)
    assert recorder.steps == list(range(1, 10))


def test_only_selectable_epochs_are_kept_and_counted_by_patience(network, store, section, monkeypatch):
    scripted(monkeypatch, [(0.9, 0.1), (0.9, 0.1), (0.5, 0.9), (0.6, 0.9), (0.5, 0.9)])
    _, history = run(network, store, section(epochs=5, patience=2), hooks=Recorder())
    assert history.best_epoch == 4
    assert len(history.rows) == 5


def test_own_learning_rates_follow_the_schedule_and_do_not_decay(network, section):
    model = network()
    section = section(lr=0.1, weight_decay=0.5)
    optimizer = make_optimizer(model, section, CPU, learning_rates=[([model[0].weight], 2.0)])
    own = optimizer.param_groups[-1]
    assert (own["lr"], own["weight_decay"], own["params"]) == (2.0, 0.0, [model[0].weight])
    others = [id(p) for group in optimizer.param_groups[:-1] for p in group["params"]]
    assert id(model[0].weight) not in others and len(others) == len(list(model.parameters())) - 1
    scheduler = make_scheduler(optimizer, section, steps_per_epoch=1)
    optimizer.step()
    scheduler.step()
    assert own["lr"] / optimizer.param_groups[0]["lr"] == pytest.approx(20)


@pytest.mark.parametrize(("extra", "steps"), [(0, 3), (1, 3), (2, 4)])
def test_a_last_batch_of_one_is_dropped(store, section, extra, steps):
    seen = []

    class Probe(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(192, 2)

        def forward(self, images):
            if self.training:
                seen.append(len(images))
            return self.head(images.flatten(1))

    splits = store.splits.copy()
    splits[store.indices("train")[93 + extra :]] = "none"
    smaller = copy.copy(store)
    object.__setattr__(smaller, "splits", splits)
    fit(Probe(), smaller, section=section(epochs=1, batch_size=31), seed=0, device=CPU)
    assert len(seen) == steps
    assert min(seen) > 1


@pytest.mark.parametrize(("step", "check_every"), [(1, 50), (2, 50), (3, 2), (2, 2)])
def test_non_finite_loss_names_epoch_and_step(network, store, section, monkeypatch, step, check_every):
    monkeypatch.setattr(loop, "CHECK_EVERY", check_every)
    calls = []

    def broken(batch, options, state):
        calls.append(1)
        return batch.logits.sum() * (float("nan") if len(calls) >= 3 + step else 0.0)

    message = rf"training loss at epoch 2, step {step}: got nan; allowed: a finite number \(lower lr"
    with pytest.raises(UserError, match=message):
        run(network, store, section(), terms=[LossTerm(1.0, broken)])


def test_non_finite_validation_loss_is_an_error(store, section):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(192, 2)

        def forward(self, images):
            return self.head(images.flatten(1)) * (1.0 if self.training else float("inf"))

    with pytest.raises(UserError, match="validation loss after epoch 1: got nan"):
        fit(Broken(), store, section=section(), seed=0, device=CPU)


@pytest.mark.parametrize("absent", ["train", "val"])
def test_empty_splits_are_refused(network, store, section, absent):
    splits = np.where(store.splits == absent, "none", store.splits)
    object.__setattr__(store, "splits", splits)
    with pytest.raises(DataError, match="training: got .* samples; allowed: at least 2 and 1"):
        run(network, store, section())


def test_frozen_parameters_stay(network, store, section):
    model = network()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    fit(model, store, section=section(epochs=1), seed=0, device=CPU, terms=[LossTerm.of(none, weight=1.0)])
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("kind", ["none", "balanced"])
def test_class_weights_reach_the_loss(store, section, kind):
    """Oracle: a model that says (1, 0) has CE ln(1 + e) - 1 on class 0 and ln(1 + e) on class 1; 84 and 12 samples."""
    labels = store.labels.copy()
    train = store.indices("train")
    labels[train] = np.where(np.arange(len(train)) < 12, 1, 0)
    object.__setattr__(store, "labels", labels)

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([1.0, 0.0]))

        def forward(self, images):
            return self.logits.expand(len(images), 2)

    settings = section(epochs=1, batch_size=96, class_weights=kind, lr=1e-12)
    history = fit(Constant(), store, section=settings, seed=0, device=CPU)
    share = {"none": 84 / 96, "balanced": 0.5}[kind]
    assert history.rows[0].train_loss == pytest.approx(np.log1p(np.e) - share, rel=1e-6)


def test_bf16_trains(network, store, section):
    _, history = run(network, store, section(epochs=4), precision="bf16")
    assert history.best.val_accuracy > 0.8
