"""Widths that learn: they move, they land on the budget, they follow what the losses say, and a resumed run repeats."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from fairquant.allocate.bitmap import BitMap
from fairquant.config.quantization import BaqSection
from fairquant.quantize.attach import attach_learned, bitmap_of, settle_learned
from fairquant.quantize.learned_widths import learned_quantizers, squash_slope
from fairquant.train import checkpoint
from fairquant.train.loop import fit
from fairquant.train.losses import gap
from fairquant.train.terms import LossBatch, LossTerm
from fairquant.train.width_control import PRICING_STEPS, WidthControl

CPU = torch.device("cpu")
SIZES = {"0": 27, "5": 54}
START = {"0": np.array([2, 4, 8, 2, 4, 8], np.uint8), "5": np.array([4, 8], np.uint8)}
SHAPES = {"0": (6, 3, 3, 3), "5": (2, 54)}


def prepared(network, **baq):
    model = network()
    attach_learned(model, BitMap("per_channel", START), held=set(), bit_min=2, bit_max=8)
    return model, WidthControl(model, SIZES, BaqSection(**({"logit_lr": 0.1} | baq)))


def train(model, store, section, control, **more):
    terms = [LossTerm.of(gap, weight=1.0), LossTerm(1.0, control.term)]
    return fit(model, store, section=section, seed=0, device=CPU, terms=terms, hooks=control, **more)


def average(model) -> float:
    settle_learned(model)
    return bitmap_of(model).average(SHAPES)


def test_widths_move_and_land_on_the_target(network, store, section):
    model, control = prepared(network, target_bits=5.0)
    history = train(model, store, section(epochs=40), control)
    assert all(not q.b_logit.requires_grad for q in learned_quantizers(model).values())
    now = np.concatenate([q.bits().numpy() for q in learned_quantizers(model).values()])
    assert (now != np.concatenate(list(START.values()))).mean() >= 0.2
    got = average(model)
    assert got <= 5.0 and (5.0 - got) * 270 < 54  # 270 parameters, the largest unit has 54
    assert history.best_epoch >= 20  # the widths land after half of the steps; only later epochs are kept


def test_the_default_target_is_the_assigned_average(network):
    assert prepared(network)[1].target == pytest.approx(BitMap("per_channel", START).average(SHAPES))


def slope(quantizer):
    """∂b/∂b_logit."""
    return 6 * squash_slope(quantizer.b_logit.detach())


def rate(quantizer):
    """−∂L/∂b by Σ g·e: ln 2 · (M + 1) / (M + ρ/2)."""
    codes = 2.0 ** (quantizer.bits().float() - 1)
    return math.log(2) * codes / (codes - 1 + quantizer.dead_zone.detach() / 2)


def along_error(control, logits_gradient):
    """Σ g·e of every unit, from gradients of the width logits without a controller."""
    return {n: -logits_gradient[n] / (slope(q) * rate(q)) for n, q in control.quantizers.items()}


def gradients(model, images, labels, control=None, step=1):
    model.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    if control is not None:
        control.before_step(step)
    return {name: q.b_logit.grad.clone() for name, q in learned_quantizers(model).items()}


def test_the_drive_is_the_scatter_less_the_price(network):
    """−rate · B · (Σ g·e)² + π n_u / N per unit and bit, against the plain gradients of the same batch."""
    plain, _ = prepared(network, regularizer="pull")
    model, control = prepared(network)
    images, labels = torch.randn(32, 3, 8, 8), torch.randint(0, 2, (32,))
    plain.eval(), model.eval()
    z = along_error(control, gradients(plain, images, labels))
    control.begin(1, 100)
    control.price = torch.tensor(0.7)
    control.term(LossBatch(torch.zeros(32, 2), labels, labels, 2))
    for name, gradient in gradients(model, images, labels, control).items():
        quantizer = control.quantizers[name]
        expected = (0.7 * SIZES[name] / 270 - rate(quantizer) * 32 * z[name] ** 2) * slope(quantizer)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-9)


def test_the_scatter_measures_the_curvature():
    """Softmax regression fitted to its labels: B · mean z² against eᵀHe by autograd, over many batches."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 3, bias=False).double()
    images = torch.randn(4000, 6, dtype=torch.float64)
    labels = torch.distributions.Categorical(logits=layer(images).detach()).sample()  # the model is fitted
    error = 0.05 * torch.randn(3, 6, dtype=torch.float64)

    def loss(weight):
        return nn.functional.cross_entropy(images @ weight.T, labels)

    hessian = torch.autograd.functional.hessian(loss, layer.weight.detach()).reshape(18, 18)
    curvature = error.flatten() @ hessian @ error.flatten()
    z = []
    for start in range(0, 4000, 20):
        part = nn.functional.cross_entropy(layer(images[start : start + 20]), labels[start : start + 20])
        z.append((torch.autograd.grad(part, layer.weight)[0] * error).sum())
    assert (20 * torch.stack(z).square().mean() / curvature).item() == pytest.approx(1, abs=0.25)


def test_the_first_price_is_what_the_first_batches_would_save(network):
    model, control = prepared(network)
    control.begin(1, 100)
    savings = []
    for step in range(1, PRICING_STEPS + 1):
        price = control.price.clone()
        images, labels = torch.randn(32, 3, 8, 8), torch.randint(0, 2, (32,))
        control.term(LossBatch(torch.zeros(32, 2), labels, labels, 2))
        found = gradients(model, images, labels, control, step)
        driven = sum((g / slope(control.quantizers[name])).sum() for name, g in found.items())
        savings.append((price - driven).item())  # Σ_u (π n_u / N − saving_u) = π − Σ saving
        control.after_step(step)
    assert control.price.item() == pytest.approx(np.mean(savings), rel=1e-3)
    before = control.price.item()
    learned_quantizers(model)["5"].set_widths(torch.tensor([8, 8]))
    control.after_step(PRICING_STEPS + 1)
    assert control.price.item() > before  # above the target: bits get dearer


class OnArrival(WidthControl):
    """The same control acting on every gradient as backward hands it out, before any averaging."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.arrived = {}
        for name, quantizer in self.quantizers.items():
            quantizer.b_logit.register_hook(lambda g, name=name: self.arrived.__setitem__(name, g.clone()))

    def before_step(self, step):
        for name, gradient in self.arrived.items():
            self.quantizers[name].b_logit.grad = gradient
        self.arrived.clear()  # widths that have landed have no gradient any more
        super().before_step(step)


def driven(kind, network, store, section):
    """Train with the control ``kind`` through pricing, learning and landing; return history and weights."""
    model = network()
    attach_learned(model, BitMap("per_channel", START), held=set(), bit_min=2, bit_max=8)
    control = kind(model, SIZES, BaqSection(logit_lr=0.1, target_bits=5.0))
    return train(model, store, section(epochs=12), control), model.state_dict()


def test_one_process_computes_what_it_would_on_arrival(network, store, section):
    """Bit for bit, through pricing, learning and landing: nothing happens between backward and the step."""
    history, weights = driven(WidthControl, network, store, section)
    other_history, other_weights = driven(OnArrival, network, store, section)
    assert history == other_history
    for name, value in weights.items():
        assert torch.equal(value, other_weights[name]), name


class Layerwise(WidthControl):
    """The same control acting on every layer's gradient as backward hands it out, with its own slope and rate."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.saved = {}
        for name, quantizer in self.quantizers.items():
            quantizer.b_logit.register_hook(lambda gradient, name=name: self.drive(name, gradient))

    def drive(self, name, gradient):
        quantizer = self.quantizers[name]
        saving = self.batch * (gradient / slope(quantizer)) ** 2 / rate(quantizer)
        self.saved[name] = saving.sum()
        return (self.price * self.sizes[name] / self.total - saving) * slope(quantizer)

    def before_step(self, step):
        self._saving = torch.stack(list(self.saved.values())).sum()


def test_all_layers_at_once_are_driven_as_one_by_one(network, store, section):
    """Through pricing, learning and landing, with the slope and rate of each layer computed here: equal to rounding."""
    history, weights = driven(WidthControl, network, store, section)
    other_history, other_weights = driven(Layerwise, network, store, section)
    assert [row.train_loss for row in history.rows] == pytest.approx(
        [row.train_loss for row in other_history.rows], rel=1e-4
    )
    for name, value in weights.items():
        torch.testing.assert_close(value, other_weights[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_range_of_one_width_moves_nothing(network, store, section):
    model = network()
    bits = BitMap("per_channel", {name: np.full_like(width, 4) for name, width in START.items()})
    attach_learned(model, bits, held=set(), bit_min=4, bit_max=4)
    train(model, store, section(epochs=2), WidthControl(model, SIZES, BaqSection(bit_min=4, bit_max=4)))
    assert all(q.bits().tolist() == [4] * len(q.b_logit) for q in learned_quantizers(model).values())
    assert all(torch.isfinite(value).all() for value in model.state_dict().values() if value.is_floating_point())


def test_the_pull_brings_widths_back(network):
    model, control = prepared(network, regularizer="pull", bits_weight=2.0)
    control.begin(1, 10)
    zeros = torch.zeros(2, 2)
    assert control.term(LossBatch(zeros, zeros[0], zeros[0], 2)).item() == 0
    module = learned_quantizers(model)["5"]
    module.set_widths(torch.tensor([6, 8]))
    assert control.term(LossBatch(zeros, zeros[0], zeros[0], 2)).item() == pytest.approx(
        2.0 * 54 * 2**2 / 270, rel=1e-4
    )


def test_the_pull_lands_on_whole_widths(network, store, section):
    model, control = prepared(network, regularizer="pull")
    train(model, store, section(epochs=2), control)
    for quantizer in learned_quantizers(model).values():
        torch.testing.assert_close(quantizer.widths, quantizer.widths.round(), atol=1e-5, rtol=0)


def test_bits_go_where_the_error_costs():
    """Two channels of equal size, one behind a gain of 10: its error costs 100 times as much, so it gets the bits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8, bias=False))
    teacher, gains = model[0].weight.detach().clone(), torch.tensor([10.0] * 4 + [1.0] * 4)
    attach_learned(model, BitMap("per_channel", {"0": np.full(8, 4, np.uint8)}), held=set(), bit_min=2, bit_max=8)
    control = WidthControl(model, {"0": 64}, BaqSection(logit_lr=0.05))
    control.begin(1, 300)
    ((logits, lr),) = control.learning_rates()
    optimizer = torch.optim.Adam(list(logits), lr=lr)
    for step in range(1, 301):
        images = torch.randn(32, 64)
        optimizer.zero_grad()
        error = (gains * (model(images) - images @ teacher.T)).square().mean()
        (error + control.term(LossBatch(images, images[:, 0], images[:, 0], 2))).backward()
        control.before_step(step)
        optimizer.step()
        control.after_step(step)
    widths = learned_quantizers(model)["0"].bits().tolist()
    assert sum(widths) == 8 * 4
    # the optimum is log2(10) = 3.3 bits apart: error ~ gain² 4^(-b)
    assert 2 <= np.mean(widths[:4]) - np.mean(widths[4:]) <= 4.5


@pytest.mark.parametrize("epoch", [2, 4])
def test_resume_is_exact_before_and_after_landing(network, store, section, tmp_path, epoch, at_epoch):
    class Stop(Exception):
        pass

    def stop(number):
        if number == epoch:
            raise Stop

    whole, control = prepared(network)
    expected = train(whole, store, section(epochs=5), control)
    killed, control = prepared(network)
    control.epoch_start = stop
    with pytest.raises(Stop):
        train(killed, store, section(epochs=5), control, checkpoint_dir=tmp_path / "r")
    assert len(list((tmp_path / "r").rglob(checkpoint.FILE))) == 1
    resumed, control = prepared(network)
    assert train(resumed, store, section(epochs=5), control, checkpoint_dir=tmp_path / "r") == expected
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
