"""The activation quantizer: torch.ao's FakeQuantize is the oracle in training, hand values elsewhere."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

from fairquant import artifacts, plugins
from fairquant.errors import ArtifactError, ConfigError, UserError
from fairquant.quantize.activation import ActivationQuantizer
from fairquant.quantize.affine import SMALLEST

OBSERVERS = plugins.names("observer")
TRAINING = tuple(name for name in OBSERVERS if plugins.load("observer", name).TRAINS)
SCHEMES = ("asymmetric", "symmetric")
WIDTHS = range(2, 17)


def make(bits: int = 8, scheme: str = "asymmetric", observer: str = "minmax", **rest: float) -> ActivationQuantizer:
    return ActivationQuantizer(bits=bits, scheme=scheme, observer=observer, **rest)


def stream(seed: int = 0, shape: tuple[int, ...] = (4, 3, 5, 5)) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for number in itertools.count(1):
        yield torch.randn(shape, generator=generator) * number**0.5 + 0.3


def calibrated(quantizer: ActivationQuantizer, batches: int = 3) -> ActivationQuantizer:
    quantizer.eval()
    quantizer.observing, quantizer.quantizing = True, False
    for x in itertools.islice(stream(), batches):
        quantizer(x)
    quantizer.settle()
    quantizer.observing, quantizer.quantizing = False, True
    return quantizer


class TestTraining:
    @pytest.mark.parametrize(("bits", "scheme"), list(itertools.product(WIDTHS, SCHEMES)))
    def test_each_step_is_torch_aos_to_the_last_bit(self, bits, scheme):
        ours = make(bits, scheme, "moving_average", momentum=0.1).train()
        theirs = FakeQuantize(
            observer=MovingAverageMinMaxObserver,
            quant_min=ours.codes.least,
            quant_max=ours.codes.largest,
            dtype=torch.qint32,
            qscheme=torch.per_tensor_symmetric if scheme == "symmetric" else torch.per_tensor_affine,
            averaging_constant=0.1,
            eps=SMALLEST,
        )
        for x in itertools.islice(stream(bits), 6):
            a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
            got, expected = ours(a), theirs(b)
            assert torch.equal(got.view(torch.int32), expected.view(torch.int32))
            assert torch.equal(ours.scale, theirs.scale[0]) and torch.equal(ours.zero_point, theirs.zero_point[0])
            upstream = torch.randn(x.shape)
            got.backward(upstream)
            expected.backward(upstream)
            assert torch.equal(a.grad, b.grad)

    @pytest.mark.parametrize("observer", TRAINING)
    def test_the_grid_follows_before_the_tensor_is_rounded(self, observer):
        quantizer = make(observer=observer).train()
        quantizer(torch.tensor([0.0, 2.55]))
        assert float(quantizer.scale) == pytest.approx(0.01)
        quantizer.eval()
        assert float(quantizer(torch.tensor([9.0]))) == pytest.approx(2.55)
        assert float(quantizer.scale) == pytest.approx(0.01)

    @pytest.mark.parametrize("observer", TRAINING)
    def test_it_follows_while_nothing_is_rounded(self, observer):
        quantizer = make(observer=observer).train()
        quantizer.quantizing = False
        x = torch.tensor([0.0, 2.55])
        assert quantizer(x) is x and float(quantizer.scale) == pytest.approx(0.01)

    @pytest.mark.parametrize("observer", sorted(set(OBSERVERS) - set(TRAINING)))
    def test_other_observers_keep_the_range_of_the_calibration(self, observer):
        quantizer = calibrated(make(observer=observer)).train()
        scale, state = quantizer.scale.clone(), copy.deepcopy(quantizer.state_dict())
        quantizer(torch.randn(50) * 100)
        assert torch.equal(quantizer.scale, scale)
        assert all(torch.equal(state[key], value) for key, value in quantizer.state_dict().items())

    @pytest.mark.parametrize("observer", OBSERVERS)
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_no_step_waits_for_the_device(self, observer, scheme):
        """Tensors of the device "meta" have no values: whatever would read one, or needs one for a size, raises."""
        static = calibrated(make(4, scheme, observer)).train().to("meta")
        static.observing = True
        for quantizer in (static, ActivationQuantizer(bits=4, scheme=scheme, observer=observer, dynamic=True)):
            x = torch.empty(4, 3, 8, 8, device="meta", requires_grad=True)
            out = quantizer(x)
            out.sum().backward()
            assert out.shape == x.grad.shape == x.shape
        with pytest.raises(RuntimeError, match="meta"):
            static.settle()

    def test_a_layer_learns_through_it(self):
        """Gradients reach the layer before the quantizer: a least-squares fit comes down to the grid's own error."""
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 8), make(8, observer="moving_average"), nn.Linear(8, 1))
        x = torch.randn(64, 3)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
        for _ in range(200):
            loss = (network(x)[:, 0] - x @ torch.tensor([1.0, -2.0, 0.5])).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss.item() < 1e-3


class TestCalibration:
    @pytest.mark.parametrize("observer", OBSERVERS)
    def test_calibration_sees_full_precision_and_settles_once(self, observer):
        quantizer = make(observer=observer).eval()
        quantizer.observing, quantizer.quantizing = True, False
        for x in itertools.islice(stream(), 3):
            assert quantizer(x) is x
            assert float(quantizer.scale) == 0
        quantizer.settle()
        assert float(quantizer.scale) > 0

    def test_minmax_by_hand(self):
        """[−1, 4.1] at 8 bits: Δ = 0.02, z = 50."""
        quantizer = make().eval()
        quantizer.observing, quantizer.quantizing = True, False
        quantizer(torch.tensor([-1.0, 2.0])), quantizer(torch.tensor([4.1]))
        quantizer.settle()
        quantizer.quantizing = True
        assert (float(quantizer.scale), int(quantizer.zero_point)) == (pytest.approx(0.02), 50)
        out = quantizer(torch.tensor([-7.0, 0.031, 0.0, 5.0]))
        torch.testing.assert_close(out, torch.tensor([-1.0, 0.04, 0.0, 4.1]))

    def test_nothing_is_observed_in_evaluation(self):
        quantizer = calibrated(make())
        low = quantizer.observer.low.clone()
        quantizer(torch.full((3,), -1000.0))
        assert torch.equal(quantizer.observer.low, low)

    @pytest.mark.parametrize("observer", OBSERVERS)
    def test_nothing_seen(self, observer):
        message = r"^layer1.conv2: got no images to find the range of activations on; allowed: at least one batch$"
        quantizer = make(observer=observer)
        with pytest.raises(UserError, match=message):
            quantizer.settle(point="layer1.conv2")
        quantizer.observing, quantizer.quantizing = True, False
        quantizer.eval()(torch.empty(0, 3, 4, 4))
        with pytest.raises(UserError, match=message):
            quantizer.settle(point="layer1.conv2")

    @pytest.mark.parametrize("observer", OBSERVERS)
    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("when", [0, 1, 2])
    def test_nan_and_infinity_are_reported_once_at_the_end(self, observer, bad, when):
        quantizer = make(observer=observer).eval()
        quantizer.observing, quantizer.quantizing = True, False
        for number, x in enumerate(itertools.islice(stream(), 3)):
            if number == when:
                x[1, 2, 3, 4] = bad
            quantizer(x)
        with pytest.raises(UserError, match=r"^stem: got activations that are NaN or infinite; allowed: finite"):
            quantizer.settle(point="stem")

    @pytest.mark.parametrize("observer", OBSERVERS)
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_a_tensor_that_is_always_zero(self, observer, scheme):
        quantizer = make(8, scheme, observer).eval()
        quantizer.observing, quantizer.quantizing = True, False
        quantizer(torch.zeros(4, 3))
        quantizer.settle()
        quantizer.quantizing = True
        assert (float(quantizer.scale), int(quantizer.zero_point)) == (1.0, 0)
        assert torch.equal(quantizer(torch.zeros(4, 3)), torch.zeros(4, 3))

    @pytest.mark.parametrize("observer", OBSERVERS)
    @pytest.mark.parametrize("value", [5.0, -0.25])
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_a_constant_tensor_is_kept(self, observer, value, scheme):
        quantizer = make(8, scheme, observer).eval()
        quantizer.observing, quantizer.quantizing = True, False
        x = torch.full((4, 3), value)
        quantizer(x)
        quantizer.settle()
        quantizer.quantizing = True
        torch.testing.assert_close(quantizer(x), x, rtol=1e-2, atol=0)

    @pytest.mark.parametrize(("bits", "scheme"), list(itertools.product((2, 4, 8, 16), SCHEMES)))
    @pytest.mark.parametrize("observer", OBSERVERS)
    def test_no_more_values_than_codes_one_of_them_zero(self, observer, bits, scheme):
        quantizer = calibrated(make(bits, scheme, observer))
        x = torch.randn(3000, generator=torch.Generator().manual_seed(1))
        x[0] = 0.0
        out = quantizer(x)
        assert out[0] == 0 and len(out.unique()) <= 2**bits - (scheme == "symmetric")
        codes = (out.double() / quantizer.scale.double()).round()
        torch.testing.assert_close(codes * quantizer.scale.double(), out.double(), rtol=1e-6, atol=0)


class TestDynamic:
    def test_every_tensor_has_its_own_range(self):
        quantizer = ActivationQuantizer(bits=8, scheme="asymmetric", observer="minmax", dynamic=True)
        for x in itertools.islice(stream(), 3):
            static = make()
            static.train()(x)
            assert torch.equal(quantizer(x), static.eval()(x))
        assert quantizer.state_dict() == {} and quantizer.scale is None and quantizer.observer is None

    def test_it_can_be_switched_off_and_has_nothing_to_settle(self):
        quantizer = ActivationQuantizer(bits=2, scheme="symmetric", observer="mse", dynamic=True)
        quantizer.settle()
        quantizer.quantizing, x = False, torch.randn(5)
        assert quantizer(x) is x
        with pytest.raises(ArtifactError, match=r"^activation grid: got one for dynamic quantization; allowed: none$"):
            quantizer.load_grid(torch.tensor(1.0), torch.tensor(0))

    def test_nan_stays_nan(self):
        quantizer = ActivationQuantizer(bits=8, scheme="asymmetric", observer="minmax", dynamic=True)
        assert quantizer(torch.tensor([1.0, torch.nan])).isnan().all()


class TestTypesAndPlaces:
    @pytest.mark.parametrize("dynamic", [False, True])
    def test_autocast_to_bfloat16(self, dynamic):
        """bfloat16 goes in and out; codes are those of the exact values in float32."""
        torch.manual_seed(0)
        layer, quantizer = (
            nn.Linear(6, 5),
            ActivationQuantizer(bits=8, scheme="asymmetric", observer="moving_average", dynamic=dynamic),
        )
        images = torch.randn(40, 6)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = layer(images)
            out = quantizer.train()(x)
        assert x.dtype == out.dtype == torch.bfloat16
        reference = make().train()
        assert torch.equal(out, reference(x.float()).bfloat16())
        if not dynamic:
            assert quantizer.scale.dtype == quantizer.observer.low.dtype == torch.float32
        out.sum().backward()
        assert layer.weight.grad is not None and bool(layer.weight.grad.isfinite().all())

    @pytest.mark.parametrize("observer", OBSERVERS)
    def test_memory_format_does_not_matter(self, observer):
        plain, channels_last = make(4, observer=observer), make(4, observer=observer)
        for quantizer, format_ in ((plain, torch.contiguous_format), (channels_last, torch.channels_last)):
            quantizer.eval()
            quantizer.observing, quantizer.quantizing = True, False
            for x in itertools.islice(stream(), 3):
                quantizer(x.contiguous(memory_format=format_))
            quantizer.settle()
            quantizer.quantizing = True
        assert torch.equal(plain.scale, channels_last.scale) and torch.equal(plain.zero_point, channels_last.zero_point)
        x = next(stream(5)).to(memory_format=torch.channels_last)
        out = channels_last(x)
        assert torch.equal(out, plain(x.contiguous())) and out.stride() == x.stride()

    @pytest.mark.parametrize("dynamic", [False, True])
    @pytest.mark.parametrize("shape", [(0,), (0, 3, 4, 4), (2, 0, 5)])
    def test_an_empty_tensor_passes_and_teaches_nothing(self, dynamic, shape):
        quantizer = ActivationQuantizer(bits=8, scheme="asymmetric", observer="moving_average", dynamic=dynamic).train()
        x = torch.empty(shape, requires_grad=True)
        out = quantizer(x)
        assert out.shape == shape
        out.sum().backward()
        assert x.grad.shape == shape and not (not dynamic and quantizer.ready)

    def test_to_another_device_takes_everything_along(self):
        moved = calibrated(make(observer="histogram")).to("meta")
        assert {t.device.type for t in moved.state_dict().values()} == {"meta"}

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    @pytest.mark.parametrize(("observer", "scheme"), list(itertools.product(OBSERVERS, SCHEMES)))
    def test_a_gpu_gives_the_same(self, observer, scheme):
        quantizers = [make(4, scheme, observer), make(4, scheme, observer).cuda()]
        for quantizer in quantizers:
            quantizer.eval()
            quantizer.observing, quantizer.quantizing = True, False
        for x in itertools.islice(stream(), 3):
            quantizers[0](x), quantizers[1](x.cuda())
        for quantizer in quantizers:
            quantizer.settle()
            quantizer.quantizing = True
        assert torch.equal(quantizers[0].scale, quantizers[1].scale.cpu())
        x = next(stream(9))
        assert torch.equal(quantizers[0](x), quantizers[1](x.cuda()).cpu())


class TestState:
    @pytest.mark.parametrize(("observer", "scheme"), list(itertools.product(OBSERVERS, SCHEMES)))
    def test_a_file_brings_everything_back(self, observer, scheme, tmp_path):
        quantizer = calibrated(make(5, scheme, observer))
        arrays = {name: tensor.numpy() for name, tensor in quantizer.state_dict().items()}
        artifacts.write_tensors(tmp_path / "state.safetensors", arrays, meta={})
        read, _ = artifacts.read_tensors(tmp_path / "state.safetensors")
        again = make(5, scheme, observer).eval()
        again.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in read.items()})
        x = next(stream(7))
        assert again.ready and torch.equal(again(x), quantizer(x))
        assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in quantizer.state_dict().items())

    @pytest.mark.parametrize("observer", TRAINING)
    def test_a_resumed_run_goes_on_bit_for_bit(self, observer):
        straight, first = make(4, observer=observer).train(), make(4, observer=observer).train()
        for number, x in enumerate(itertools.islice(stream(), 6)):
            if number == 3:
                state = copy.deepcopy(first.state_dict())
                first = make(4, observer=observer).train()
                first.load_state_dict(state)
            assert torch.equal(first(x), straight(x))

    def test_a_copy_goes_its_own_way(self):
        quantizer = calibrated(make(observer="moving_average"))
        twin = copy.deepcopy(quantizer).train()
        scale = quantizer.scale.clone()
        twin(torch.randn(10) * 100)
        assert torch.equal(quantizer.scale, scale) and not torch.equal(twin.scale, scale)

    def test_without_a_range_it_says_so(self):
        message = r"^activations: got no range yet; allowed: after calibration, or with a saved grid$"
        quantizer = make().eval()
        with pytest.raises(UserError, match=message):
            quantizer(torch.randn(3))
        again = make().eval()
        again.load_state_dict(quantizer.state_dict())
        with pytest.raises(UserError, match=message):
            again(torch.randn(3))

    @pytest.mark.parametrize("shape", [(), (1,)])
    def test_a_saved_grid(self, shape):
        quantizer = make(4, observer="percentile").eval()
        quantizer.load_grid(torch.full(shape, 0.5), torch.full(shape, 3))
        assert quantizer.scale.shape == quantizer.zero_point.shape == () and quantizer.zero_point.dtype == torch.int32
        assert quantizer(torch.tensor([-9.0, 0.6, 9.0])).tolist() == [-1.5, 0.5, 6.0]

    @pytest.mark.parametrize("scale", [torch.tensor(0.0), torch.tensor(-1.0), torch.tensor(torch.nan), torch.ones(2)])
    def test_a_scale_that_is_none(self, scale):
        with pytest.raises(ArtifactError, match=r"^activation scale: got .*; allowed: one positive number$"):
            make().load_grid(scale, torch.tensor(0))

    @pytest.mark.parametrize(
        ("scheme", "zero_point", "allowed"),
        [
            ("asymmetric", torch.tensor(16), "a whole number from 0 to 15"),
            ("asymmetric", torch.tensor(-1), "a whole number from 0 to 15"),
            ("asymmetric", torch.tensor(0.5), "a whole number from 0 to 15"),
            ("asymmetric", torch.tensor([1, 2]), "a whole number from 0 to 15"),
            ("symmetric", torch.tensor(1), r"0 \(symmetric\)"),
        ],
    )
    def test_a_zero_point_that_is_none(self, scheme, zero_point, allowed):
        with pytest.raises(ArtifactError, match=rf"^activation zero point: got .*; allowed: {allowed}$"):
            make(4, scheme).load_grid(torch.tensor(1.0), zero_point)


class TestSettings:
    def test_what_does_not_exist_is_refused(self):
        with pytest.raises(UserError, match=r"^activation bits: got 32; allowed: 2 to 16$"):
            make(32)
        with pytest.raises(UserError, match=r"^activation scheme: got 'affine'"):
            make(8, "affine")
        with pytest.raises(ConfigError, match=r"^observer: got 'median'; allowed: histogram \| "):
            make(8, "symmetric", "median")

    def test_it_says_how_it_quantizes(self):
        assert make(4, "symmetric", "mse").extra_repr() == "bits=4, scheme=symmetric, observer=mse"
        dynamic = ActivationQuantizer(bits=8, scheme="asymmetric", observer="minmax", dynamic=True)
        assert repr(dynamic) == "ActivationQuantizer(bits=8, scheme=asymmetric, dynamic)"
