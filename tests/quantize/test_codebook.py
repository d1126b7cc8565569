"""Codebooks on a model: which weights share one, what a forward and a backward pass do, the file, the size."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fairquant import artifacts
from fairquant.allocate.bitmap import BitMap
from fairquant.allocate.books import books_of
from fairquant.errors import ArtifactError, UserError
from fairquant.models.build import build
from fairquant.models.spec import ModelSpec
from fairquant.quantize.attach import bitmap_of, codebooks, latent_weights, quantize_model, quantizers, scale_tables
from fairquant.quantize.codebook import CodebookQuantizer
from fairquant.quantize.state import load_quantized, plain_state, save_quantized

PERS = ("tensor", "channel")
SPEC = ModelSpec("test_efficientnet", ("a", "b"), 32, (0.5,) * 3, (0.25,) * 3)


def layer_of(bits: object, *, per: str = "tensor", shape: tuple[int, ...] = (6, 5, 3, 3), seed: int = 0):
    """Return (weight with gradient, quantizer) of one layer."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    widths = torch.tensor(bits, dtype=torch.uint8)
    return weight, CodebookQuantizer(weight, widths, per=per)


def coded(bits: BitMap, per: str) -> BitMap:
    return BitMap(bits.granularity, bits.layers, codebook=per)


class TestBooks:
    WIDTHS = np.array([2, 4, 0, 2, 32, 4, 4], np.uint8)

    def test_a_layer_has_one_for_each_of_its_widths(self):
        books = books_of(self.WIDTHS, (7, 9), "tensor")
        assert [(b.channels.tolist(), b.width, b.values) for b in books] == [([0, 3], 2, 4), ([1, 5, 6], 4, 16)]

    def test_a_channel_has_its_own(self):
        books = books_of(self.WIDTHS, (7, 9), "channel")
        expected = [([0], 2, 4), ([1], 4, 9), ([3], 2, 4), ([5], 4, 9), ([6], 4, 9)]  # 9 weights need no 16 values
        assert [(b.channels.tolist(), b.width, b.values) for b in books] == expected

    def test_one_width_for_the_layer(self):
        assert [b.channels.tolist() for b in books_of(np.uint8(3), (2, 9), "tensor")] == [[0, 1]]
        assert [b.channels.tolist() for b in books_of(np.array(3, np.uint8), (2, 9), "channel")] == [[0], [1]]
        assert books_of(np.array(32, np.uint8), (2, 9), "channel") == books_of(np.array(0, np.uint8), (2, 9), "tensor")

    def test_widths_without_a_codebook(self):
        with pytest.raises(UserError, match=r"^bit-width: got 12; allowed: 0 to 8, or 32 \(codebooks of up to 256"):
            books_of(np.array([12, 2], np.uint8), (2, 9), "tensor")
        with pytest.raises(UserError, match="^codebook: got a width for every single weight; allowed: one per layer"):
            books_of(np.full((2, 9), 2, np.uint8), (2, 9), "tensor")


class TestForward:
    @pytest.mark.parametrize("per", PERS)
    def test_every_weight_is_the_nearest_value_of_its_own_codebook(self, per):
        weight, quantizer = layer_of([2, 3, 2, 0, 32, 8], per=per)
        out = quantizer(weight)
        assert torch.equal(out[4], weight[4]) and not out[3].any()
        start = 0
        for book in quantizer.books:
            values = quantizer.centroids[start : start + book.values].detach()
            start += book.values
            rows = weight[torch.from_numpy(book.channels)]
            nearest = values[(rows[..., None] - values).abs().argmin(dim=-1)]
            assert torch.equal(out[torch.from_numpy(book.channels)], nearest)
        assert start == len(quantizer.centroids)

    def test_one_bit_is_two_values_and_their_means(self):
        weight, quantizer = layer_of(1, shape=(4, 20))
        values = quantizer(weight).unique()
        assert len(values) == 2
        weight = weight.detach()
        low = weight[quantizer.codes == 0]
        assert quantizer.centroids[0].item() == pytest.approx(float(low.double().mean()), rel=1e-6)
        assert bool((low < weight[quantizer.codes == 1].min()).all())

    @pytest.mark.parametrize("per", PERS)
    def test_the_layout_in_memory_does_not_matter(self, per):
        weight, quantizer = layer_of([2, 3, 2, 0, 32, 8], per=per)
        other = copy.deepcopy(quantizer).to(memory_format=torch.channels_last)
        last = weight.detach().to(memory_format=torch.channels_last).requires_grad_()
        out, gradient = quantizer(weight), torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        assert torch.equal(other(last), out) and other(last).is_contiguous(memory_format=torch.channels_last)
        out.backward(gradient)
        other(last).backward(gradient)
        torch.testing.assert_close(other.centroids.grad, quantizer.centroids.grad)
        assert torch.equal(last.grad, weight.grad)

    def test_untouched_is_the_weight_itself(self):
        weight, quantizer = layer_of(32)
        assert quantizer(weight) is weight and quantizer.trains_weight and not quantizer.centroids.requires_grad

    def test_pruned_is_zero_and_trains_nothing(self):
        weight, quantizer = layer_of(0)
        assert not quantizer(weight).any() and not quantizer.trains_weight and not quantizer.centroids.requires_grad

    def test_the_copy_for_evaluation_follows_the_centroids(self):
        weight, quantizer = layer_of(2)
        quantizer.eval()
        with torch.no_grad():
            first = quantizer(weight)
            assert quantizer(weight) is first
            quantizer.centroids.mul_(2)
            assert torch.equal(quantizer(weight), 2 * first)
        assert quantizer(weight).requires_grad

    def test_the_same_weights_give_the_same_codes(self):
        (_, first), (_, second) = layer_of([2, 3, 2, 0, 32, 8]), layer_of([2, 3, 2, 0, 32, 8])
        assert torch.equal(first.codes, second.codes) and torch.equal(first.centroids, second.centroids)


class TestGradient:
    @pytest.mark.parametrize("per", PERS)
    def test_a_centroid_gets_the_sum_over_its_weights(self, per):
        weight, quantizer = layer_of([2, 3, 2, 0, 32, 8], per=per)
        gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        quantizer(weight).backward(gradient)
        expected, start = np.zeros(len(quantizer.centroids)), 0
        for book in quantizer.books:
            for channel in book.channels.tolist():
                codes = quantizer.codes[channel].reshape(-1).tolist()
                for code, value in zip(codes, gradient[channel].reshape(-1).tolist(), strict=True):
                    expected[start + code] += value
            start += book.values
        np.testing.assert_allclose(quantizer.centroids.grad.numpy(), expected, rtol=1e-5, atol=1e-6)
        only_open = torch.zeros_like(weight)
        only_open[4] = gradient[4]
        assert torch.equal(weight.grad, only_open)

    def test_it_is_torchs_own_for_plain_indexing(self):
        weight, quantizer = layer_of(3)
        gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        quantizer(weight).backward(gradient)
        values = quantizer.centroids.detach().double().requires_grad_()
        values[quantizer.codes.long()].backward(gradient.double())
        torch.testing.assert_close(quantizer.centroids.grad.double(), values.grad, rtol=1e-5, atol=1e-6)

    def test_sums_over_several_blocks_of_rows(self, monkeypatch):
        gradient = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(1))
        grads = []
        for block in (1 << 18, 50):
            monkeypatch.setattr("fairquant.quantize.rows.BLOCK", block)
            weight, quantizer = layer_of([2, 3, 2, 0, 32, 8], per="channel")
            quantizer(weight).backward(gradient)
            grads.append(quantizer.centroids.grad)
        torch.testing.assert_close(*grads)


class TestOnAModel:
    @pytest.mark.parametrize("per", PERS)
    @pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
    def test_widths_come_back_and_only_open_weights_train(self, network, random_bits, per, granularity):
        model = network()
        bits = random_bits(model, granularity)
        quantize_model(model, coded(bits, per))
        assert not quantizers(model) and not scale_tables(model) and set(codebooks(model)) == set(bits.layers)
        back = bitmap_of(model)
        assert back.codebook == per and back.granularity == granularity
        assert all(np.array_equal(back.layers[name], bits.layers[name]) for name in bits.layers)
        for name, weight in latent_weights(model).items():
            assert weight.requires_grad == bool((bits.layers[name] == 32).any())

    def test_a_step_moves_centroids_and_keeps_codes(self, network, random_bits):
        model = network()
        quantize_model(model, coded(random_bits(model, "per_channel", widths=(2, 4)), "tensor"))
        before = {name: module.centroids.detach().clone() for name, module in codebooks(model).items()}
        codes = {name: module.codes.clone() for name, module in codebooks(model).items()}
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        for name, module in codebooks(model).items():
            assert not torch.equal(module.centroids, before[name]) and torch.equal(module.codes, codes[name])

    def test_a_width_without_a_codebook_names_the_layer(self, network, random_bits):
        model = network()
        with pytest.raises(UserError, match=r"^layer 0: bit-width: got 12; allowed: 0 to 8, or 32"):
            quantize_model(model, coded(random_bits(model, "per_channel", widths=(12,)), "tensor"))

    def test_a_quantized_model_is_refused(self, network, random_bits):
        model = network()
        bits = random_bits(model, "per_channel", widths=(2,))
        quantize_model(model, coded(bits, "tensor"))
        with pytest.raises(UserError, match="got a model that is quantized already"):
            quantize_model(model, bits)

    def test_a_copy_computes_the_same(self, network, random_bits):
        model = network()
        quantize_model(model, coded(random_bits(model, "per_channel"), "channel"))
        images = torch.randn(2, 3, 8, 8)
        with torch.no_grad():
            expected = model.eval()(images)
            assert torch.equal(copy.deepcopy(model)(images), expected)


@pytest.fixture(scope="module")
def built() -> nn.Module:
    return build(SPEC, seed=0)


class TestFile:
    @pytest.fixture
    def model(self, built, random_bits) -> nn.Module:
        model = copy.deepcopy(built)
        quantize_model(model, coded(random_bits(model, "per_channel", widths=(0, 1, 2, 4, 32)), "tensor"))
        return model

    def test_logits_are_bit_identical(self, model, tmp_path):
        model.to(memory_format=torch.channels_last)
        images = torch.randn(8, 3, 32, 32)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        model.train()(images).square().sum().backward()
        optimizer.step()  # centroids are no longer means
        with torch.no_grad():
            expected = model.eval()(images)
        save_quantized(tmp_path / "q.safetensors", model, SPEC)
        loaded, spec, bits = load_quantized(tmp_path / "q.safetensors")
        loaded.to(memory_format=torch.channels_last)
        assert spec == SPEC and bits.codebook == "tensor" and not loaded.training
        with torch.no_grad():
            assert torch.equal(loaded(images), expected)
        save_quantized(tmp_path / "again.safetensors", loaded, SPEC)
        assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "q.safetensors").read_bytes()

    def test_names_are_those_of_the_full_precision_model(self, built, model):
        assert sorted(plain_state(model)) == sorted(built.state_dict())

    @pytest.mark.parametrize(
        ("what", "message"),
        [
            ("no codes", "got no 'codes/"),
            ("no centroids", "got no 'centroids/"),
            ("shape", "codes: got torch.uint8"),
            ("range", "codes: got 255 of a codebook of"),
            ("number", "centroids: got"),
            ("nan", "centroids: got"),
        ],
    )
    def test_parts_missing_or_wrong(self, model, tmp_path, what, message):
        path = tmp_path / "q.safetensors"
        save_quantized(path, model, SPEC)
        arrays, meta = artifacts.read_tensors(path)
        name = next(name for name in meta["layers"] if (arrays[f"bits/{name}"] == 4).any())
        codes, centroids = (arrays[f"{kind}/{name}"].copy() for kind in ("codes", "centroids"))
        if what.startswith("no "):
            del arrays[f"{what[3:]}/{name}"]
        elif what == "shape":
            arrays[f"codes/{name}"] = codes[:-1]
        elif what == "range":
            codes[arrays[f"bits/{name}"] == 4] = 255
            arrays[f"codes/{name}"] = codes
        elif what == "number":
            arrays[f"centroids/{name}"] = centroids[:-1]
        else:
            centroids[0] = np.nan
            arrays[f"centroids/{name}"] = centroids
        artifacts.write_tensors(path, arrays, meta=meta)
        with pytest.raises(ArtifactError) as caught:
            load_quantized(path)
        assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)
