"""Folding and quantization: the same codes, torch's own folding-aware layer, factors near 0, and the way back."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao.nn.intrinsic.qat import ConvBn2d
from torch.ao.quantization import FakeQuantize, PerChannelMinMaxObserver, QConfig

from fairquant import plugins
from fairquant.allocate.bitmap import BitMap
from fairquant.errors import UserError
from fairquant.models.build import build
from fairquant.models.describe import describe
from fairquant.models.fold import FoldedNorm, fold_batch_norm
from fairquant.models.layers import quantizable_layers, weight_parameter
from fairquant.models.spec import ModelSpec
from fairquant.quantize.attach import latent_weights, quantize_model, quantizers, refresh_scales, scale_tables
from fairquant.quantize.folded import LEAST, fold_for_rounding, fold_in_training, rescaled, settle_folding, skeleton
from fairquant.quantize.state import load_quantized, plain_state, save_quantized

SPEC = ModelSpec("resnet20", ("a", "b"), 16, (0.5,) * 3, (0.25,) * 3)
KEPT = [name for name in plugins.names("scale") if name != "lsq"]  # methods whose first grid is a rule's


def pairs(bias=False, seed=0):
    """Two convolutions with batch norm, factors of both signs, and a classifier without."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=bias),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3, groups=2, stride=2, bias=bias),
            nn.BatchNorm2d(6, eps=1e-3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(54, 2),
        )
        for norm in (model[1], model[4]):
            nn.init.uniform_(norm.weight, -1.5, 1.5)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.3, 2)
    return model


def images(n=16, seed=1):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def widths(model, width, granularity="per_channel"):
    shapes = {name: tuple(layer.weight.shape) for name, layer in quantizable_layers(model).items()}
    kept = {"per_tensor": 0, "per_channel": 1, "per_param": None}[granularity]
    return BitMap(granularity, {name: np.full(shape[:kept], width, np.uint8) for name, shape in shapes.items()})


def codes(model):
    """Integer codes of every layer's weight in use."""
    found = {}
    for name, table in scale_tables(model).items():
        weight = model.get_submodule(name).weight.detach()
        found[name] = (weight / table.reshape(-1, *(1,) * (weight.dim() - 1))).round()
    return found


def signs(norm, weight):
    return norm.weight.detach().sign().reshape(-1, *(1,) * (weight.dim() - 1))


class TestRescaling:
    """Multiplying a channel by a number changes no code: widths keyed by layer mean what they meant."""

    @pytest.mark.parametrize("width", [1, 2, 4, 8])
    @pytest.mark.parametrize("scale", KEPT)
    def test_codes_are_those_of_the_unfolded_model(self, scale, width):
        plain, folded = pairs(), pairs()
        fold_batch_norm(folded)
        for model in (plain, folded):
            quantize_model(model, widths(model, width), scale=scale, percentile=95.0)
        before, after = codes(plain), codes(folded)
        for name, norm in (("0", plain[1]), ("3", plain[4])):
            assert torch.equal(after[name], before[name] * signs(norm, before[name])), name
        assert torch.equal(after["7"], before["7"])

    def test_the_weighted_step_follows_the_factor(self):
        """Importance of folded weights is that of the plain ones over f²: the least weighted error is at |f| · Δ."""
        weighted = plugins.load("scale", "weighted")
        generator = torch.Generator().manual_seed(0)
        weight, importance = (torch.randn(5, 40, generator=generator) for _ in range(2))
        factor = torch.tensor([[0.5], [-2.0], [0.3], [1.7], [-0.01]])
        top = torch.full((5, 1), 3.0)
        before = weighted.make_scale(weight, top, percentile=100, importance=importance.square())
        after = weighted.make_scale(weight * factor, top, percentile=100, importance=(importance / factor).square())
        torch.testing.assert_close(after, before * factor.abs(), rtol=1e-5, atol=0)

    @pytest.mark.parametrize("granularity", ["per_channel", "per_param"])
    def test_step_sizes_that_came_with_the_widths_keep_the_codes(self, granularity):
        plain = pairs()
        random = np.random.default_rng(0)
        bits = widths(plain, 4, granularity)
        if granularity == "per_param":
            mixed = {name: random.choice(np.uint8([2, 4]), size=array.shape) for name, array in bits.layers.items()}
            bits = BitMap(granularity, mixed)
        columns = 2 if granularity == "per_param" else 1
        steps = {
            name: random.uniform(0.01, 0.1, (len(array), columns)).astype(np.float32)
            for name, array in bits.layers.items()
        }
        bits = BitMap(granularity, bits.layers, steps)
        folded = copy.deepcopy(plain)
        scaled = fold_for_rounding(folded, bits)
        for model, given in ((plain, bits), (folded, scaled)):
            tables = {name: torch.from_numpy(table) for name, table in given.steps.items()}
            quantize_model(model, given, scale="weighted", tables=tables)
        for name, norm in (("0", plain[1]), ("3", plain[4])):
            factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().reshape(-1, 1, 1, 1)
            weight = plain.get_submodule(name).weight.detach()
            torch.testing.assert_close(folded.get_submodule(name).weight.detach(), weight * factor, rtol=1e-5, atol=0)
        assert np.array_equal(scaled.steps["7"], steps["7"])

    def test_by_hand(self):
        bits = BitMap("per_channel", {"a": np.uint8([2, 2, 2])}, {"a": np.float32([[0.5], [0.25], [1]])})
        scaled = rescaled(bits, {"a": torch.tensor([2.0, -4.0, 0.0]), "b": torch.ones(1)})
        assert scaled.steps["a"].ravel().tolist() == [1.0, 1.0, pytest.approx(1.1754944e-38)]
        assert bits.steps["a"].ravel().tolist() == [0.5, 0.25, 1.0] and list(scaled.steps) == ["a"]

    def test_one_step_for_a_layer_is_refused(self):
        model = pairs()
        bits = BitMap("per_tensor", widths(model, 4, "per_tensor").layers, {"0": np.float32([[0.1]])})
        with pytest.raises(
            UserError, match="^quantize.batch_norm: got a folded layer 0 with one step size.*allowed: keep"
        ):
            fold_for_rounding(model, bits)
        assert isinstance(model[1], nn.BatchNorm2d)  # refused before anything was changed

    def test_zero_factors_and_statistics(self):
        model = pairs()
        with torch.no_grad():
            model[1].weight[2] = 0
        fold_batch_norm(model)
        quantize_model(model, widths(model, 4))
        with torch.no_grad():
            channel = model[0](images())[:, 2]
        assert torch.equal(channel, model[0].bias[2].detach().expand_as(channel))


def folding(model, bits, **settings):
    """Attach quantizers for folding-aware training."""
    with fold_in_training(model, bits) as fitting:
        tables = {name: torch.from_numpy(table) for name, table in fitting.steps.items()} or None
        quantize_model(model, fitting, tables=tables, **settings)
    return model


@pytest.fixture
def convbn():
    """torch's layer for folding-aware training, with 8-bit symmetric fake quantization per channel."""
    fake = FakeQuantize.with_args(
        observer=PerChannelMinMaxObserver,
        quant_min=-127,
        quant_max=127,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        eps=2.0**-60,
    )

    def make(conv, norm):
        layer = ConvBn2d(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
            conv.groups, conv.bias is not None, conv.padding_mode, norm.eps, norm.momentum,
            qconfig=QConfig(activation=nn.Identity, weight=fake),
        )  # fmt: skip
        layer.weight, layer.bias = copy.deepcopy(conv.weight), copy.deepcopy(conv.bias)
        layer.bn.load_state_dict(norm.state_dict())
        return layer

    return make


class TestAgainstTorch:
    """ConvBn2d of torch.ao: output, gradients and running statistics, several steps long."""

    @pytest.mark.parametrize("bias", [False, True])
    def test_training_and_evaluation(self, convbn, bias):
        ours = pairs(bias)
        theirs = copy.deepcopy(ours)
        theirs[0], theirs[1] = convbn(ours[0], ours[1]), nn.Identity()
        theirs[3], theirs[4] = convbn(ours[3], ours[4]), nn.Identity()
        bits = widths(ours, 8)
        bits.layers["7"][:] = 32
        folding(ours, bits).train()
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.05) for model in (ours, theirs.train())]
        close = {"rtol": 2e-5, "atol": 2e-6}
        for step in range(4):
            for place in (0, 3):
                theirs[place].weight_fake_quant.activation_post_process.reset_min_max_vals()
            losses = [model(images(seed=step)).square().sum() for model in (ours, theirs)]
            torch.testing.assert_close(*losses, **close)
            for loss, optimizer in zip(losses, optimizers, strict=True):
                optimizer.zero_grad()
                loss.backward()
            for place, norm in ((0, 1), (3, 4)):
                one, other = weight_parameter(ours[place]), theirs[place].weight
                for found, wanted in (
                    (one.grad, other.grad),
                    (ours[norm].weight.grad, theirs[place].bn.weight.grad),
                    (ours[norm].bias.grad, theirs[place].bn.bias.grad),
                ):
                    largest = float(wanted.abs().max())
                    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5 * largest)
                moved = theirs[place].bias.detach() if bias else 0
                torch.testing.assert_close(ours[norm].running_mean + moved, theirs[place].bn.running_mean, **close)
                torch.testing.assert_close(ours[norm].running_var, theirs[place].bn.running_var, **close)
            for optimizer in optimizers:
                optimizer.step()
        ours.eval()
        theirs.eval()
        for place in (0, 3):
            theirs[place].weight_fake_quant.activation_post_process.reset_min_max_vals()
        with torch.no_grad():
            torch.testing.assert_close(ours(images()), theirs(images()), rtol=1e-4, atol=1e-4)

    def test_the_first_output_to_the_last_bit(self, convbn):
        """The same operations in the same order, while no weight lies half way between two codes."""
        ours = pairs()
        theirs = convbn(ours[0], ours[1]).train()
        bits = widths(ours, 8)
        folding(ours, bits).train()
        assert torch.equal(ours[:2](images()), theirs(images()))
        torch.nn.functional.relu(ours[:2](images())).sum().backward()
        theirs.zero_grad()
        torch.nn.functional.relu(theirs(images())).sum().backward()
        assert torch.equal(weight_parameter(ours[0]).grad, theirs.weight.grad)
        assert torch.equal(ours[1].weight.grad, theirs.bn.weight.grad)


class TestFoldedTraining:
    @pytest.mark.parametrize("bias", [False, True])
    def test_at_32_bits_it_is_batch_norm(self, bias):
        plain, ours = pairs(bias), pairs(bias)
        folding(ours, widths(ours, 32))
        for model in (plain, ours):
            model.train()
        torch.testing.assert_close(ours(images()), plain(images()), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.eval()(images(seed=2)), plain.eval()(images(seed=2)), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("scale", plugins.names("scale"))
    @pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_param"])
    def test_in_evaluation_it_is_the_folded_model(self, scale, granularity):
        """The grids start on folded weights, and the latent weights are what they were, bit for bit."""
        original = pairs()
        ours, folded = folding(pairs(), widths(original, 4, granularity), scale=scale), pairs()
        fold_batch_norm(folded)
        quantize_model(folded, widths(folded, 4, granularity), scale=scale)
        for name, weight in latent_weights(ours).items():
            assert torch.equal(weight, original.get_submodule(name).weight)
        for name, table in scale_tables(folded).items():
            torch.testing.assert_close(scale_tables(ours)[name], table, rtol=1e-5, atol=0)
        with torch.no_grad():
            torch.testing.assert_close(ours.eval()(images()), folded.eval()(images()), rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
    @pytest.mark.parametrize("scale", ["absmax", "mse"])
    def test_it_settles_with_the_same_codes(self, scale, scheme):
        model = pairs(bias=True)
        ours = folding(model, BitMap("per_channel", widths(model, 3).layers, scheme=scheme), scale=scale)
        optimizer = torch.optim.AdamW(ours.parameters(), lr=0.01)
        for step in range(3):
            optimizer.zero_grad()
            ours.train()(images(seed=step)).square().sum().backward()
            optimizer.step()
        refresh_scales(ours)
        tables = scale_tables(ours)
        weights = {name: layer.weight.detach().clone() for name, layer in quantizable_layers(ours).items()}
        with torch.no_grad():
            expected = ours.eval()(images())
            settle_folding(ours)
            torch.testing.assert_close(ours(images()), expected, rtol=1e-4, atol=1e-4)
        assert all(torch.equal(weights[name], layer.weight) for name, layer in quantizable_layers(ours).items())
        assert all(torch.equal(tables[name], table) for name, table in scale_tables(ours).items())
        plain = pairs(bias=True)
        fold_batch_norm(plain)
        assert sorted(plain_state(ours)) == sorted(plain.state_dict())
        assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in ours.modules())

    def test_grids_are_refreshed_on_folded_weights(self):
        ours = folding(pairs(), widths(pairs(), 4), scale="percentile", percentile=90.0)
        with torch.no_grad():
            ours[1].running_var.mul_(4)
        before = scale_tables(ours)["0"].clone()
        refresh_scales(ours)
        torch.testing.assert_close(scale_tables(ours)["0"], before / 2, rtol=1e-3, atol=0)

    @pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
    @pytest.mark.parametrize("gamma", [0.0, -0.0, 1e-20, -1e-30])
    def test_a_factor_near_zero(self, gamma, granularity):
        """torch's own layer puts out NaN at 0; ours what batch norm does, and γ goes on learning."""
        plain = pairs()
        with torch.no_grad():
            plain[1].weight[3] = gamma
        ours = folding(copy.deepcopy(plain), widths(plain, 32 if granularity == "per_channel" else 8, granularity))
        outputs = [model[:2].train()(images()) for model in (plain, ours)]
        torch.testing.assert_close(outputs[1][:, 3], outputs[0][:, 3], rtol=1e-6, atol=1e-6)
        for model, output in zip((plain, ours), outputs, strict=True):
            output.pow(3).sum().backward()
            assert all(torch.isfinite(p.grad).all() for p in model[:2].parameters())
        if granularity == "per_channel":
            torch.testing.assert_close(ours[1].weight.grad[3], plain[1].weight.grad[3], rtol=1e-3, atol=0)
        settle_folding(ours)
        with torch.no_grad():
            channel = ours[0].eval()(images())[:, 3]
        beta = plain[1].bias[3].detach()
        torch.testing.assert_close(channel, beta.expand_as(channel), rtol=1e-6, atol=1e-10)

    def test_the_guard_changes_nothing_above_it(self):
        ours = folding(pairs(), widths(pairs(), 8))
        with torch.no_grad():
            ours[1].weight.fill_(4 * LEAST)
        fold = quantizers(ours)["0"].before
        assert torch.equal(fold.factor(), ours[1].weight / torch.sqrt(ours[1].running_var + ours[1].eps))

    def test_linear_layers_by_the_formula(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
        nn.init.uniform_(model[1].weight, 0.5, 2)
        model[1].running_var.uniform_(0.5, 2)
        x, factor = torch.randn(9, 6), (model[1].weight / (model[1].running_var + 1e-5).sqrt()).detach()
        folded = model[0].weight.detach() * factor[:, None]
        step = folded.abs().amax(1, keepdim=True) / 7
        wanted = nn.functional.linear(x, (folded / step).round() * step) / factor
        wanted = (wanted - wanted.mean(0)) / (wanted.var(0, correction=0) + 1e-5).sqrt() * model[1].weight
        ours = folding(model, widths(model, 4)).train()
        torch.testing.assert_close(ours[:2](x), wanted, rtol=1e-4, atol=1e-5)

    def test_a_copy_is_on_its_own(self):
        ours = folding(pairs(), widths(pairs(), 4)).train()
        other = copy.deepcopy(ours)
        with torch.no_grad():
            ours[1].weight.zero_()
        expected = folding(pairs(), widths(pairs(), 4)).train()(images())
        assert torch.equal(other(images()), expected)
        settle_folding(other)
        assert isinstance(other[1], FoldedNorm) and isinstance(ours[1], nn.BatchNorm2d)

    def test_in_bf16_the_output_keeps_its_type(self):
        ours = folding(pairs(), widths(pairs(), 8)).train()
        with torch.autocast("cpu", torch.bfloat16):
            assert ours[0](images()).dtype == torch.bfloat16

    def test_steps_that_came_with_the_widths(self):
        model = pairs()
        layers = widths(model, 4).layers
        steps = {name: np.full((len(width), 1), 0.05, np.float32) for name, width in layers.items()}
        bits = BitMap("per_channel", layers, steps)
        ours = folding(model, bits, scale="weighted")
        factor = (ours[1].weight / (ours[1].running_var + ours[1].eps).sqrt()).detach().abs()
        torch.testing.assert_close(scale_tables(ours)["0"][:, 0], 0.05 * factor, rtol=1e-6, atol=0)


class TestFiles:
    @pytest.mark.parametrize("trained", [False, True])
    def test_a_folded_model_comes_back_bit_for_bit(self, trained, tmp_path):
        model = build(SPEC, seed=3)
        images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        model.train()(images)
        bits = widths(model, 4)
        if trained:
            folding(model, bits)
            model.train()(images)
            settle_folding(model)
        else:
            quantize_model(model, fold_for_rounding(model, bits))
        save_quantized(tmp_path / "q.safetensors", model, SPEC)
        loaded, spec, _ = load_quantized(tmp_path / "q.safetensors")
        assert spec == SPEC and not any(isinstance(m, nn.BatchNorm2d) for m in loaded.modules())
        with torch.no_grad():
            assert torch.equal(loaded(images), model.eval()(images))
        save_quantized(tmp_path / "again.safetensors", loaded, spec)
        assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "q.safetensors").read_bytes()

    def test_an_unfolded_file_says_nothing_of_it(self, tmp_path):
        model = build(SPEC, seed=3)
        quantize_model(model, widths(model, 4))
        save_quantized(tmp_path / "q.safetensors", model, SPEC)
        assert b"batch_norm" not in (tmp_path / "q.safetensors").read_bytes()[:20_000]
        loaded, _, _ = load_quantized(tmp_path / "q.safetensors")
        assert sorted(plain_state(loaded)) == sorted(build(SPEC, seed=0).state_dict())

    def test_skeletons(self):
        plain, folded = (skeleton(SPEC, folded=folded) for folded in (False, True))
        assert list(plain.state_dict()) == list(build(SPEC, seed=0).state_dict())
        assert len(folded.state_dict()) == 2 * 20 and any(isinstance(m, FoldedNorm) for m in folded.modules())
        sizes = [describe(model, SPEC)["parameters"]["rest"] for model in (plain, folded)]
        channels = 16 + 6 * (16 + 32 + 64)  # four numbers of batch norm for each, or a bias; and two classes
        assert sizes == [4 * channels + 2, channels + 2]
