"""Activation quantizers on models: off they change nothing, on they round each tensor once; copies are their own."""

from __future__ import annotations

import copy
import logging

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from fairquant.allocate.bitmap import BitMap
from fairquant.errors import UserError
from fairquant.models.layers import quantizable_layers
from fairquant.quantize.activate import (
    activation_quantizers,
    activation_settings,
    attach_activations,
    forget_ranges,
    input_bits,
    is_activation_key,
    keep_points,
)
from fairquant.quantize.attach import bitmap_of, quantize_model, quantizers
from fairquant.quantize.state import plain_state

tv = torchvision.models
HOW = {"bits": 8, "scheme": "asymmetric", "observer": "minmax"}


def small_vgg() -> nn.Module:
    """VGG-11 with batch norm; its classifier of 120 million weights is replaced while it has none."""
    with torch.device("meta"):
        model = tv.vgg.VGG(nn.Sequential(), num_classes=2, init_weights=False)
    model.features = tv.vgg.make_layers([8, "M", 16, "M", 16, 16, "M"], batch_norm=True)
    model.classifier = nn.Sequential(nn.Linear(784, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 2))
    return model


def small_vit() -> nn.Module:
    """A vision transformer with torch's attention, and a head that does not start at 0."""
    model = tv.VisionTransformer(32, 16, 2, 2, 8, 16, dropout=0.2, num_classes=2)
    nn.init.normal_(model.heads.head.weight)
    return model


MODELS = {
    "resnet18": tv.resnet18,
    "resnet50": tv.resnet50,
    "mobilenet_v2": tv.mobilenet_v2,
    "efficientnet_b0": tv.efficientnet_b0,
    "squeezenet1_1": tv.squeezenet1_1,
    "vgg_bn": small_vgg,
    "densenet": lambda: tv.DenseNet(8, (2, 2), 8, num_classes=2),
    "deit_tiny": lambda: timm.create_model("deit_tiny_patch16_224", img_size=32, depth=2, drop_path_rate=0.5),
    "torch_vit": small_vit,
    "beit": lambda: timm.create_model("beit_base_patch16_224", img_size=32, depth=1, embed_dim=32, num_heads=2),
    "convnext": lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)),
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, Tensor]:
    """A model, the same with settled 16-bit activation quantizers (sharing its weights), and images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[request.param]().eval().to(memory_format=torch.channels_last)
        images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    logging.disable(logging.WARNING)
    quantized = attach_activations(model, **(HOW | {"bits": 16}))
    logging.disable(logging.NOTSET)
    switch(quantized, quantizing=False, observing=True)
    with torch.no_grad():
        quantized(images)
    switch(quantized, quantizing=True, observing=False)
    for quantizer in activation_quantizers(quantized).values():
        quantizer.settle()
    return model, quantized, images


def switch(model: nn.Module, **attributes: bool) -> None:
    for quantizer in activation_quantizers(model).values():
        for name, value in attributes.items():
            setattr(quantizer, name, value)


class TestModels:
    def test_off_it_is_the_model_bit_for_bit(self, pair):
        model, quantized, images = pair
        switch(quantized, quantizing=False)
        with torch.no_grad():
            assert torch.equal(quantized(images), model(images))
        switch(quantized, quantizing=True)

    def test_sixteen_bits_are_close_and_no_tensor_is_missed(self, pair):
        model, quantized, images = pair
        with torch.no_grad():
            plain, rounded = model(images), quantized(images)
        assert not torch.equal(plain, rounded)
        torch.testing.assert_close(rounded, plain, rtol=0.02, atol=0.02 * plain.abs().max().item())

    def test_names_layers_and_weights_stay(self, pair):
        model, quantized, _ = pair
        assert list(plain_state(quantized)) == list(model.state_dict())
        assert list(quantizable_layers(quantized)) == list(quantizable_layers(model))
        assert all(a is b for a, b in zip(quantized.parameters(), model.parameters(), strict=True))
        own = [name for name in quantized.state_dict() if is_activation_key(name)]
        assert {name.split(".", 1)[1].rsplit(".scale", 1)[0] for name in own if name.endswith(".scale")} == set(
            activation_quantizers(quantized)
        )

    def test_each_quantizer_runs_once_and_sees_no_grid_twice(self, pair):
        _, quantized, images = pair
        calls, made = [], []
        hooks = [
            q.register_forward_hook(
                lambda q, inputs, output: (calls.append(inputs[0]), made.append(output))[:0] or None
            )
            for q in activation_quantizers(quantized).values()
        ]
        with torch.no_grad():
            quantized(images)
        for hook in hooks:
            hook.remove()
        assert len(calls) == len(activation_quantizers(quantized))
        assert not {id(tensor) for tensor in calls} & {id(tensor) for tensor in made}
        assert len({id(tensor) for tensor in calls}) == len(calls)

    def test_a_copy_computes_the_same_by_itself(self, pair):
        _, quantized, images = pair
        twin = copy.deepcopy(quantized)
        assert activation_settings(twin) == activation_settings(quantized)
        assert input_bits(twin) == input_bits(quantized)
        with torch.no_grad():
            expected = quantized(images)
            assert torch.equal(twin(images), expected)
            for quantizer in activation_quantizers(twin).values():
                quantizer.scale.mul_(64)
            assert not torch.equal(twin(images), expected) and torch.equal(quantized(images), expected)

    def test_it_trains_like_the_model(self, pair):
        """Dropout and stochastic depth draw the same numbers; with quantizers on, gradients reach every weight."""
        model, quantized, images = (copy.deepcopy(part) for part in pair)
        outputs = []
        switch(quantized, quantizing=False)
        for one in (model.train(), quantized.train()):
            torch.manual_seed(5)
            outputs.append(one(images))
        assert torch.equal(*outputs)
        switch(quantized, quantizing=True)
        torch.manual_seed(5)
        quantized(images).square().sum().backward()
        reached = {name for name, p in quantized.named_parameters() if p.grad is not None}
        torch.manual_seed(5)
        model(images).square().sum().backward()
        assert reached == {name for name, p in model.named_parameters() if p.grad is not None}
        assert all(torch.isfinite(p.grad).all() for p in quantized.parameters() if p.grad is not None)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        y += x
        output: Tensor = self.fc(y.mean((2, 3)))
        return output


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def residual() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Residual().eval()


def by_torch(x: Tensor, bits: int = 8) -> Tensor:
    """Fake-quantize ``x`` to its own range, which holds 0, with torch's operation."""
    low, high = x.min().clamp(max=0).item(), x.max().clamp(min=0).item()
    scale = (high - low) / (2**bits - 1)
    return torch.fake_quantize_per_tensor_affine(x, scale, round(-low / scale), 0, 2**bits - 1)


class TestAll:
    def test_against_torchs_operation_at_every_place(self, residual, images):
        model = attach_activations(residual, **HOW, dynamic=True)
        with torch.no_grad():
            image = by_torch(images)
            total = by_torch(residual.conv(image).relu()) + image
            expected = residual.fc(by_torch(by_torch(total).mean((2, 3))))
            torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5)
        assert list(activation_quantizers(model)) == ["conv.input", "add.0", "mean.input", "fc.input"]

    def test_a_sum_in_place_writes_over_nobodys_tensor(self, residual, images):
        model = attach_activations(residual, **HOW, dynamic=True)
        before = images.clone()
        switch(model, quantizing=False)
        assert torch.equal(model(images), residual(images)) and torch.equal(images, before)

    def test_layers_that_are_not_called_are_named(self, caplog):
        vit = tv.VisionTransformer(32, 16, 1, 2, 8, 16, num_classes=2)
        with caplog.at_level(logging.WARNING):
            model = attach_activations(vit, **HOW)
        assert caplog.messages == [
            "activations: the inputs of layers that are used without being called stay floating: "
            "encoder.layers.encoder_layer_0.self_attention.out_proj"
        ]
        assert set(quantizable_layers(vit)) - set(input_bits(model)) == {
            "encoder.layers.encoder_layer_0.self_attention.out_proj"
        }

    def test_weights_may_be_quantized_before(self, residual, images):
        bits = BitMap.filled({"conv": (), "fc": ()}, 4)
        quantize_model(residual, bits)
        model = attach_activations(residual, **HOW, dynamic=True)
        assert bitmap_of(model).widths() == (4,) and list(quantizers(model)) == ["conv", "fc"]
        switch(model, quantizing=False)
        with torch.no_grad():
            assert torch.equal(model(images), residual(images))

    def test_the_model_itself_stays(self, residual, images):
        with torch.no_grad():
            expected = residual(images)
            attach_activations(residual, **HOW)
            assert torch.equal(residual(images), expected)
        assert not activation_quantizers(residual) and not input_bits(residual)


class TestLayers:
    def test_the_model_itself_with_quantized_inputs(self, residual, images):
        model = attach_activations(residual, **HOW, points="layers", dynamic=True)
        assert model is residual and list(activation_quantizers(model)) == ["conv.input", "fc.input"]
        plain = copy.deepcopy(residual)
        with torch.no_grad():
            conv, fc = (nn.utils.parametrize.type_before_parametrizations(m) for m in (plain.conv, plain.fc))
            total = conv.forward(plain.conv, by_torch(images)).relu() + images
            expected = fc.forward(plain.fc, by_torch(total.mean((2, 3))))
            torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5)
        assert list(plain_state(model)) == list(Residual().state_dict())

    def test_a_copy_uses_its_own_quantizers(self, residual, images):
        model = attach_activations(residual, **HOW, points="layers")
        twin = copy.deepcopy(model)
        switch(twin, observing=True, quantizing=False)
        twin(images)
        assert activation_quantizers(twin)["conv.input"].observer.high.isfinite()
        assert activation_quantizers(model)["conv.input"].observer.high.isinf()

    def test_in_a_sequence_and_by_keyword(self, images):
        class Named(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.parts = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten())

            def forward(self, x: Tensor) -> Tensor:
                output: Tensor = self.parts[1](self.parts[0](input=x))
                return output

        model = attach_activations(Named(), **(HOW | {"bits": 2}), points="layers", dynamic=True)
        with torch.no_grad():
            expected = nn.Conv2d.forward(model.parts[0], by_torch(images, 2)).flatten(1)
            torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-6)
        sequence = attach_activations(nn.Sequential(nn.Conv2d(3, 2, 1)), **HOW, points="layers", dynamic=True)
        assert len(list(sequence.children())) == 1 and sequence(images).shape == (4, 2, 6, 6)

    def test_layers_inside_torchs_attention_are_named(self, caplog):
        with caplog.at_level(logging.WARNING):
            model = attach_activations(nn.MultiheadAttention(4, 2), **HOW, points="layers")
        assert caplog.messages[0].endswith("stay floating: out_proj") and not activation_quantizers(model)

    def test_points_can_be_taken_away(self, residual, images):
        model = attach_activations(residual, **HOW, points="layers", dynamic=True)
        assert keep_points(model, ["fc.input"]) == ["conv.input"]
        assert list(activation_quantizers(model)) == ["fc.input"] and input_bits(model) == {"fc": 8}
        with torch.no_grad():
            torch.testing.assert_close(model.conv(images), nn.Conv2d.forward(model.conv, images), rtol=0, atol=0)
        assert keep_points(model, ["fc.input"]) == []

    def test_but_not_from_a_graph(self, residual):
        model = attach_activations(residual, **HOW)
        with pytest.raises(UserError, match=r"^activation points: got a graph with add\.0; allowed: the points of its"):
            keep_points(model, [name for name in activation_quantizers(model) if name != "add.0"])


@pytest.mark.parametrize("points", ["all", "layers"])
class TestBoth:
    def test_a_second_time_is_refused(self, points, residual):
        model = attach_activations(residual, **HOW, points=points)
        with pytest.raises(UserError, match="^model: got one whose activations are quantized already; allowed: one "):
            attach_activations(model, **HOW, points=points)

    def test_settings_and_widths(self, points, residual):
        model = attach_activations(residual, **(HOW | {"bits": 3}), points=points)
        assert activation_settings(model) == {**HOW, "bits": 3, "momentum": 0.1, "percentile": 99.99,
                                              "points": points, "dynamic": False}  # fmt: skip
        assert input_bits(model) == {"conv": 3, "fc": 3} and activation_settings(residual.conv) is None

    def test_the_mode_of_the_model_is_theirs(self, points, residual):
        for training in (True, False):
            model = attach_activations(copy.deepcopy(residual).train(training), **HOW, points=points)
            assert {q.training for q in activation_quantizers(model).values()} == {training}

    def test_forgotten_ranges(self, points, residual, images):
        model = attach_activations(residual, **HOW, points=points)
        switch(model, observing=True, quantizing=False)
        model(images)
        quantizer = activation_quantizers(model)["conv.input"]
        quantizer.settle()
        scale = quantizer.scale.clone()
        forget_ranges(model)
        assert quantizer.observer.high.isinf() and torch.equal(quantizer.scale, scale) and quantizer.ready
