"""Learnable widths: arithmetic against a float64 brute force, gradients against the definition, exact starts."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from fairquant.allocate.bitmap import BitMap
from fairquant.errors import ArtifactError, UserError
from fairquant.models.layers import quantizable_layers
from fairquant.quantize.attach import attach_learned, bitmap_of, quantize_model, quantizers, settle_learned
from fairquant.quantize.learned_widths import (
    ENDS,
    LearnedWidthQuantizer,
    learned_quantizers,
    squash,
    squash_slope,
    unit_terms,
    unsquash,
)

WIDTHS = [2, 3, 4, 8, 5, 2]


def brute_force(weight: torch.Tensor, bits: list[int], dead: list[float]) -> np.ndarray:
    """Weight by weight in float64, straight from the definition."""
    rows = weight.detach().double().numpy()
    result = np.empty_like(rows)
    for row, width, zone in zip(range(len(rows)), bits, dead, strict=True):
        largest = 2 ** (width - 1) - 1
        peak = np.abs(rows[row]).max()
        delta = peak / (largest + zone / 2)
        assert delta == pytest.approx((peak - zone * delta / 2) / largest)  # Δ = (max|w| − d/2) / M
        for index, value in np.ndenumerate(rows[row]):
            code = max(0, min(largest, math.ceil((abs(value) - zone * delta / 2) / delta)))
            result[(row, *index)] = math.copysign(code * delta, value)
    return result


def quantizer(weight: torch.Tensor, bits: list[int] | int = WIDTHS) -> LearnedWidthQuantizer:
    return LearnedWidthQuantizer(weight, torch.tensor(bits, dtype=torch.uint8), bit_min=2, bit_max=8)


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))


class TestSquash:
    def test_ends_and_inverse(self):
        share = torch.linspace(0, 1, 11, dtype=torch.float64)
        torch.testing.assert_close(squash(unsquash(share)), share)
        assert unsquash(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist() == pytest.approx(ENDS)

    def test_gradient_is_alive_at_and_beyond_the_ends(self):
        logit = torch.tensor([-9.0, *ENDS, 0.0, 9.0], dtype=torch.float64, requires_grad=True)
        squash(logit).sum().backward()
        assert (logit.grad > 0).all()
        torch.testing.assert_close(logit.grad, squash_slope(logit.detach()))


class TestForward:
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("zone", [0.0, 0.3, 1.0, 1.7, 2.0])
    def test_brute_force(self, weight, layout, zone):
        module = quantizer(weight)
        with torch.no_grad():
            module.d_logit.fill_(unsquash(torch.tensor(zone / 2)))
        dead = module.dead_zone.tolist()
        assert dead == pytest.approx([zone] * 6, abs=1e-6)
        result = module(weight.to(memory_format=layout)).detach()
        np.testing.assert_allclose(result.numpy(), brute_force(weight, WIDTHS, dead), atol=1e-6)

    def test_starts_exactly_at_the_widths_both_ends_included(self, weight):
        module = quantizer(weight)
        assert module.bits().tolist() == WIDTHS
        torch.testing.assert_close(module.widths, torch.tensor(WIDTHS, dtype=torch.float32), atol=1e-5, rtol=0)
        assert quantizer(weight, 8).bits().item() == 8

    def test_one_width_of_a_range_of_one(self, weight):
        module = LearnedWidthQuantizer(weight, torch.full((6,), 4), bit_min=4, bit_max=4)
        assert module.bits().tolist() == [4] * 6

    @pytest.mark.parametrize("width", [1, 9])
    def test_refuses_a_width_outside_the_range(self, weight, width):
        with pytest.raises(UserError, match=f"^bit-width: got {width}; allowed: from bit_min 2 to bit_max 8$"):
            quantizer(weight, [width] * 6)

    def test_a_channel_of_zeros_stays_zero(self):
        assert not quantizer(torch.zeros(2, 3), [2, 8])(torch.zeros(2, 3)).any()

    def test_blocks_change_nothing(self, weight, monkeypatch):
        whole = quantizer(weight)(weight)
        monkeypatch.setattr("fairquant.quantize.rows.BLOCK", 40)
        torch.testing.assert_close(quantizer(weight)(weight), whole, rtol=0, atol=0)


class TestGradients:
    def test_against_the_definition(self, weight):
        """Σ g·∂ŵ/∂b with ∂ŵ/∂Δ = code − |w|/Δ (straight-through rounding), in float64."""
        module = quantizer(weight.requires_grad_())
        incoming = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        result = module(weight)
        result.backward(incoming)
        g, w, q = incoming.double(), weight.detach().double(), result.detach().double()
        largest = 2.0 ** (torch.tensor(WIDTHS).double() - 1) - 1
        dead = module.dead_zone.detach().double()
        peak = w.flatten(1).abs().amax(1)
        delta = peak / (largest + dead / 2)
        of_delta = ((g * (q - w)).flatten(1).sum(1)) / delta
        slope = 6 * squash_slope(module.b_logit.detach()).double()
        expected = of_delta * (-delta / (largest + dead / 2)) * math.log(2) * (largest + 1) * slope
        torch.testing.assert_close(module.b_logit.grad.double(), expected, rtol=1e-4, atol=1e-6)
        direct = -(g * w.sign()).flatten(1).sum(1) * delta / 2
        of_dead = direct + of_delta * (-delta / (2 * (largest + dead / 2)))
        torch.testing.assert_close(
            module.d_logit.grad.double(), of_dead * 2 * squash_slope(module.d_logit.detach()), rtol=1e-4, atol=1e-6
        )
        assert torch.equal(weight.grad, incoming)

    def test_the_expected_loss_falls_along_the_width_gradient(self):
        """Mean squared error: the gradient's prediction of one more bit against the loss measured one bit higher."""
        weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
        low, high = quantizer(weight, [4] * 64), quantizer(weight, [5] * 64)
        loss = (low(weight) - weight).square().sum()
        loss.backward()
        measured = (high(weight) - weight).square().sum() / loss
        saving = -(low.b_logit.grad / (6 * squash_slope(low.b_logit.detach()))).sum()
        predicted = saving / loss.detach()
        assert predicted.item() == pytest.approx(2 * math.log(2) * 8 / 7.5, rel=1e-3)  # −d ln(Δ²)/db
        assert measured.item() == pytest.approx((7.5 / 15.5) ** 2, rel=0.05)

    def test_per_tensor_sums_over_the_layer(self, weight):
        module = quantizer(weight, 4)
        module(weight).backward(torch.ones_like(weight))
        assert module.b_logit.grad.shape == (1,) and module.b_logit.grad.item() != 0

    @pytest.mark.parametrize("loss", ["task", "fairness"])
    def test_both_losses_reach_the_logits(self, loss):
        from fairquant.train.losses import gap
        from fairquant.train.terms import LossBatch

        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))
        bits = BitMap("per_channel", {"0": np.full(8, 2, np.uint8), "3": np.full(2, 8, np.uint8)})
        attach_learned(model, bits, held=set(), bit_min=2, bit_max=8)
        logits = model(torch.randn(16, 3, 8, 8))
        labels, groups = torch.randint(0, 2, (16,)), torch.arange(16) % 2
        batch = LossBatch(logits, labels, groups, 2)
        task = nn.functional.cross_entropy(logits, labels)
        value = task if loss == "task" else gap.loss(batch, gap.Options(), {})
        value.backward()
        for module in learned_quantizers(model).values():
            assert (module.b_logit.grad != 0).all() and (module.d_logit.grad != 0).all()


class TestTerms:
    @pytest.fixture
    def module(self, weight):
        module = quantizer(weight)
        with torch.no_grad():
            module.d_logit.copy_(torch.linspace(*ENDS, 6))
        return module

    def test_by_autograd_in_float64(self, module):
        """Each term against the formulas of the docstring, their derivatives taken by torch."""
        terms = module.terms()
        width = module.widths.double().round()
        logit = module.d_logit.detach().double().requires_grad_()
        dead = 2 * squash(logit)
        span = 2 ** (width - 1) - 1 + dead / 2
        torch.testing.assert_close(terms.span.view(-1).double(), span.detach(), rtol=1e-6, atol=0)
        torch.testing.assert_close(terms.shift.view(-1).double(), (dead.detach() - 1) / 2, rtol=1e-6, atol=1e-6)
        soft = module.b_logit.detach().double().requires_grad_()
        (bits,) = torch.autograd.grad((2 + 6 * squash(soft)).sum(), soft)
        by_error = -math.log(2) * 2 ** (width - 1) / span.detach() * bits
        torch.testing.assert_close(terms.bits_error.view(-1).double(), by_error, rtol=1e-5, atol=0)
        (of_dead,) = torch.autograd.grad(dead.sum(), logit)
        torch.testing.assert_close(terms.dead_sign.view(-1).double(), -of_dead / 2, rtol=1e-5, atol=0)
        by_dead = -of_dead / (2 * span.detach())
        torch.testing.assert_close(terms.dead_error.view(-1).double(), by_dead, rtol=1e-5, atol=0)

    def test_units_may_stand_in_one_column(self, module):
        whole = unit_terms(module.b_logit, module.d_logit, 2, 8)
        for term, first, rest in zip(
            whole,
            unit_terms(module.b_logit[:2], module.d_logit[:2], 2, 8),
            unit_terms(module.b_logit[2:], module.d_logit[2:], 2, 8),
            strict=True,
        ):
            torch.testing.assert_close(term, torch.cat([first, rest]), rtol=1e-6, atol=0)

    def test_held_terms_are_used_until_a_logit_changes(self, module, weight):
        fresh = module(weight).detach()
        module.hold(unit_terms(module.b_logit, module.d_logit, 2, 8))
        held = module.terms()
        assert module.terms() is held
        assert torch.equal(module(weight), fresh)
        module.set_widths(torch.tensor([8] * 6))
        assert module.terms() is not held
        assert torch.equal(module.terms().span, unit_terms(module.b_logit, module.d_logit, 2, 8).span)

    @pytest.mark.parametrize("change", ["d_logit", "type", "copy"])
    def test_no_change_goes_unnoticed(self, module, change):
        module.hold(unit_terms(module.b_logit, module.d_logit, 2, 8))
        if change == "d_logit":
            with torch.no_grad():
                module.d_logit.add_(1)
        module = {"d_logit": lambda: module, "type": module.double, "copy": lambda: copy.deepcopy(module)}[change]()
        with torch.no_grad():
            module.b_logit.fill_(0)
        for got, expected in zip(module.terms(), unit_terms(module.b_logit, module.d_logit, 2, 8), strict=True):
            assert torch.equal(got, expected)


class TestModel:
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 2))

    def bits(self, granularity: str = "per_channel") -> BitMap:
        if granularity == "per_tensor":
            return BitMap(granularity, {"0": np.array(3, np.uint8), "4": np.array(8, np.uint8)})
        return BitMap(granularity, {"0": np.array(WIDTHS, np.uint8), "4": np.array([32, 32], np.uint8)})

    @pytest.mark.parametrize(("granularity", "held"), [("per_channel", {"4"}), ("per_tensor", set())])
    def test_settled_is_the_same_model_bit_for_bit(self, granularity, held):
        model, images = self.model(), torch.randn(4, 3, 8, 8)
        attach_learned(model, self.bits(granularity), held=held, bit_min=2, bit_max=8)
        with torch.no_grad():
            for module in learned_quantizers(model).values():
                module.d_logit.add_(torch.randn_like(module.d_logit))
            before = model.eval()(images)
            settle_learned(model)
            torch.testing.assert_close(model.eval()(images), before, rtol=0, atol=0)
        assert {m.method for m in quantizers(model).values()} == {"lsq"} and not learned_quantizers(model)
        expected = self.bits(granularity).layers
        assert all(np.array_equal(bits, expected[name]) for name, bits in bitmap_of(model).layers.items())

    def test_refuses_a_quantized_model_and_foreign_widths(self):
        model = self.model()
        quantize_model(model, self.bits())
        with pytest.raises(UserError, match="quantized already"):
            attach_learned(model, self.bits(), held={"4"}, bit_min=2, bit_max=8)
        with pytest.raises(ArtifactError, match="bit map of layer 0"):
            attach_learned(
                self.model(), BitMap("per_channel", {**self.bits().layers, "0": np.zeros(3, np.uint8)}), held=set(),
                bit_min=2, bit_max=8,
            )  # fmt: skip
        with pytest.raises(UserError, match="^layer 4: bit-width: got 32; allowed: from bit_min 2 to bit_max 8$"):
            attach_learned(self.model(), self.bits(), held=set(), bit_min=2, bit_max=8)

    def test_a_copy_and_its_text(self):
        model = self.model()
        attach_learned(model, self.bits(), held={"4"}, bit_min=2, bit_max=8)
        again = copy.deepcopy(model)
        images = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(again.eval()(images), model.eval()(images), rtol=0, atol=0)
        assert "bits in [2, 8], learned" in repr(model)
        assert list(quantizable_layers(model)) == ["0", "4"]
