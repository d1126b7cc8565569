"""Observers: a contract for every plug-in; torch.ao, numpy and brute force for the range each of them finds."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.ao.quantization import HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver

from fairquant import plugins
from fairquant.quantize.affine import Codes, fake_quantize_affine
from fairquant.quantize.observers import _counts, _percentile
from fairquant.quantize.observers._base import Observer, in_memory_order
from fairquant.quantize.observers._counts import Counts, power_of_two
from fairquant.quantize.observers._error import expected_errors

NAMES = plugins.names("observer")
COUNTING = ("histogram", "mse", "percentile")
SCHEMES = ("asymmetric", "symmetric")


def make(name: str, bits: int = 8, scheme: str = "asymmetric", percentile: float = 99.9) -> Observer:
    module = plugins.load("observer", name)
    observer: Observer = module.make_observer(bits=bits, scheme=scheme, momentum=0.1, percentile=percentile)
    return observer


def batches(kind: str, seed: int = 0, n: int = 4000, count: int = 3) -> list[torch.Tensor]:
    """Tensors as activations are: one-sided, skewed, heavy-tailed, saturated; their spread changes."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        x = torch.randn(n, generator=generator) * (1 + 0.3 * number)
        outliers = torch.tensor([60.0]) if number == 1 else torch.empty(0)
        found.append(
            {
                "normal": x,
                "relu": x.relu(),
                "negative": -x.abs() - 0.1,
                "outlier": torch.cat([x, outliers]),
                "silu": torch.nn.functional.silu(2 * x),
                "skewed": x.exp() - 3,
                "relu6": (4 * x).clamp(0, 6),
                "cubed": x**3,
            }[kind]
        )
    return found


KINDS = ("normal", "relu", "negative", "outlier", "silu", "skewed", "relu6", "cubed")


def observed(observer: Observer, tensors: list[torch.Tensor]) -> Observer:
    for x in tensors:
        observer(x)
    return observer


def ends(observer: Observer) -> tuple[float, float]:
    low, high = observer.range()
    return float(low), float(high)


def squared_error(data: torch.Tensor, low: torch.Tensor, high: torch.Tensor, codes: Codes) -> float:
    scale, zero_point = codes.grid(low, high)
    return float((fake_quantize_affine(data, scale, zero_point, codes).double() - data.double()).square().sum())


def test_the_plugins():
    expected = {"histogram": False, "minmax": True, "moving_average": True, "mse": False, "percentile": False}
    assert expected.items() <= {name: plugins.load("observer", name).TRAINS for name in NAMES}.items()


def test_plugins_load_without_torch():
    code = (
        "import sys; from fairquant import plugins; "
        "[plugins.load('observer', n) for n in plugins.names('observer')]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    @pytest.mark.parametrize(("bits", "scheme"), list(itertools.product((2, 16), SCHEMES)))
    @pytest.mark.parametrize("kind", ["negative", "outlier", "relu6"])
    def test_the_range_is_finite_ordered_and_the_same_every_time(self, name, bits, scheme, kind):
        tensors = batches(kind, n=100)
        kept = [x.clone() for x in tensors]
        observer = observed(make(name, bits, scheme), tensors)
        low, high = observer.range()
        assert low.shape == high.shape == () and low.dtype == high.dtype == torch.float32
        assert bool(torch.isfinite(low) & torch.isfinite(high)) and low <= high and bool(observer.finite)
        scale, zero_point = Codes.of(bits, scheme).grid(low, high)  # widened to hold 0
        assert bool(torch.isfinite(scale) & (scale > 0))
        assert ends(observed(make(name, bits, scheme), tensors)) == (float(low), float(high))
        assert all(torch.equal(x, y) for x, y in zip(tensors, kept, strict=True))

    @pytest.mark.parametrize("scheme", SCHEMES)
    @pytest.mark.parametrize("kind", ["normal", "relu", "cubed"])
    def test_a_state_saved_half_way_goes_on_the_same(self, name, scheme, kind):
        tensors = [x * 4**number for number, x in enumerate(batches(kind, n=200, count=4))]
        straight = observed(make(name, 4, scheme), tensors)
        state = copy.deepcopy(observed(make(name, 4, scheme), tensors[:2]).state_dict())
        resumed = make(name, 4, scheme)
        resumed.load_state_dict(state)
        observed(resumed, tensors[2:])
        assert ends(resumed) == ends(straight)
        assert all(torch.equal(resumed.state_dict()[key], value) for key, value in straight.state_dict().items())

    def test_memory_is_bounded(self, name):
        observer = make(name)
        size = {key: (value.shape, value.dtype) for key, value in observer.state_dict().items()}
        for number, x in enumerate(batches("normal", n=3000, count=20)):
            observer(x * 2.0**number)
        assert {key: (value.shape, value.dtype) for key, value in observer.state_dict().items()} == size
        assert sum(value.nbytes for value in observer.state_dict().values()) < 300_000

    def test_returns_nothing_and_keeps_no_graph(self, name):
        x = torch.randn(50, requires_grad=True)
        observer = make(name)
        assert observer(x * 2) is None
        assert not any(value.requires_grad for value in (*observer.state_dict().values(), *observer.range()))

    def test_nothing_seen(self, name):
        observer = make(name)
        observer(torch.empty(0, 3))
        assert ends(observer) == (np.inf, -np.inf) and bool(observer.finite)

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_what_is_not_finite_is_remembered(self, name, bad):
        observer = observed(make(name), [torch.randn(10), torch.tensor([1.0, bad]), torch.randn(10)])
        assert not bool(observer.finite)
        observer.range()

    def test_shape_and_memory_format_do_not_matter(self, name):
        x = torch.randn(4, 6, 5, 3, generator=torch.Generator().manual_seed(0))
        views = [
            x,
            x.to(memory_format=torch.channels_last),
            x.transpose(1, 3),
            x.flatten(),
            x[:, None].expand(-1, 2, -1, -1, -1),
        ]
        assert len({ends(observed(make(name), [view])) for view in views[:4]}) == 1
        assert ends(observed(make(name), [views[4]])) == ends(observed(make(name), [torch.cat([x, x])]))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_16_bit_floats_are_seen_as_the_numbers_they_are(self, name, dtype):
        tensors = [x.to(dtype) for x in batches("normal", n=200)]
        assert ends(observed(make(name), tensors)) == ends(observed(make(name), [x.float() for x in tensors]))

    @pytest.mark.parametrize("scheme", SCHEMES)
    @pytest.mark.parametrize("unit", [2.0**-60, 2.0**40])
    def test_the_unit_does_not_matter(self, name, scheme, unit):
        tensors = batches("normal", n=200)
        low, high = ends(observed(make(name, 4, scheme), tensors))
        assert ends(observed(make(name, 4, scheme), [x * unit for x in tensors])) == (low * unit, high * unit)

    def test_a_single_value(self, name):
        observer = observed(make(name), [torch.tensor(3.0), torch.tensor([3.0])])
        scale, zero_point = Codes.of(8, "asymmetric").grid(*observer.range())
        assert float((255 - zero_point) * scale) == pytest.approx(3.0, rel=1e-3)


class TestExtremes:
    @pytest.mark.parametrize(("bits", "scheme"), list(itertools.product(range(2, 17), SCHEMES)))
    @pytest.mark.parametrize("name", ["minmax", "moving_average"])
    def test_torch_ao_to_the_last_bit(self, name, bits, scheme):
        codes = Codes.of(bits, scheme)
        settings = {
            "dtype": torch.qint32,
            "qscheme": torch.per_tensor_symmetric if codes.symmetric else torch.per_tensor_affine,
            "quant_min": codes.least,
            "quant_max": codes.largest,
        }
        if name == "minmax":
            theirs = MinMaxObserver(**settings)
        else:
            theirs = MovingAverageMinMaxObserver(averaging_constant=0.1, **settings)
        ours = make(name, bits, scheme)
        for kind in ("normal", "relu", "negative", "cubed"):
            for x in batches(kind, seed=bits, n=100):
                ours(x), theirs(x)
                assert torch.equal(ours.low, theirs.min_val) and torch.equal(ours.high, theirs.max_val)
                scale, zero_point = codes.grid(*ours.range())
                expected_scale, expected_zero_point = theirs.calculate_qparams()
                assert torch.equal(scale, expected_scale[0]) and int(zero_point) == int(expected_zero_point)

    def test_the_order_matters_to_the_average_alone(self):
        tensors = batches("normal", n=200)
        for name in NAMES:
            same = ends(observed(make(name), tensors)) == ends(observed(make(name), tensors[::-1]))
            assert same == (name != "moving_average")


class TestCounts:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
    def test_they_are_those_of_one_histogram_of_everything(self, kind, order):
        tensors = [x * (0.01, 1.0, 7.0)[number] for number, x in enumerate(batches(kind, n=700))]
        observer = observed(Counts(64), [tensors[number] for number in order])
        data = torch.cat(tensors).double().numpy()
        top = 2.0 ** int(observer.exponent)
        assert top / 2 <= np.abs(data).max() < top
        bins = np.floor(data / (top / 64)).astype(int) + 64
        assert observer.counts.tolist() == np.bincount(bins, minlength=128).tolist()
        assert int(observer.zeros) == int((data == 0).sum())

    def test_long_tensors_are_counted_in_blocks(self, monkeypatch):
        x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
        whole = observed(Counts(64), [x])
        monkeypatch.setattr(_counts, "BLOCK", 7)
        assert torch.equal(observed(Counts(64), [x]).counts, whole.counts)

    def test_more_values_than_float32_can_count(self):
        observer = observed(Counts(4), [torch.tensor([1.0])])
        observer.counts[5] = 2**24
        assert int(observed(observer, [torch.tensor([0.5])]).counts.sum()) == 2**24 + 2

    def test_powers_of_two_fall_into_the_bin_they_begin(self):
        observer = observed(Counts(4), [torch.tensor([0.25, 0.5, -0.5, -0.25, 1.0, -1.0])])  # W = 0.5
        assert observer.counts.tolist() == [0, 0, 1, 2, 1, 1, 1, 0]

    @pytest.mark.parametrize("value", [1e-45, 1e-38, 2.0**-101, 3.4e38])
    def test_the_ends_of_float32(self, value):
        x = torch.tensor([-value, value])
        observer = observed(Counts(1 << 14), [x])
        assert int(observer.counts.sum()) == 2 and int(observer.zeros) == 0
        edges, counts = observer.filled(zeros=True)
        assert torch.equal(edges[[0, -1]], x.double()) and int(counts.sum()) == 2

    def test_power_of_two(self):
        exponents = range(-126, 128)
        got = power_of_two(torch.tensor(list(exponents), dtype=torch.int32))
        assert got.double().tolist() == [2.0**e for e in exponents]

    def test_in_memory_order(self):
        x = torch.arange(24.0).reshape(2, 3, 2, 2)
        last = x.to(memory_format=torch.channels_last)
        assert in_memory_order(last).data_ptr() == last.data_ptr()
        assert sorted(in_memory_order(last[:, ::2]).tolist()) == sorted(x[:, ::2].flatten().tolist())
        assert in_memory_order(torch.tensor(5.0)).tolist() == [5.0]


class TestPercentile:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("percentile", [50.5, 90.0, 99.0, 99.9, 99.99, 100.0])
    def test_outwards_of_numpys_by_at_most_a_bin(self, kind, percentile):
        for seed, scale in enumerate((1.0, 30.0)):
            tensors = [x * scale**number for number, x in enumerate(batches(kind, seed, n=1500))]
            data = torch.cat(tensors).double().numpy()
            bin_ = np.abs(data).max() / 8192
            rounding = np.abs(data).max() * 1e-7

            low, high = ends(observed(make("percentile", percentile=percentile), tensors))
            exact_low, exact_high = np.percentile(data, [(100 - percentile) / 2, (100 + percentile) / 2])
            assert -rounding <= high - exact_high <= bin_ + rounding and high <= data.max()
            assert -rounding <= exact_low - low <= bin_ + rounding and low >= data.min()

            low, high = ends(observed(make("percentile", scheme="symmetric", percentile=percentile), tensors))
            exact = np.percentile(np.abs(data), percentile)
            assert -rounding <= high - exact <= bin_ + rounding and high <= np.abs(data).max() and low == -high

    @pytest.mark.parametrize("kind", KINDS)
    def test_100_is_minmax(self, kind):
        tensors = batches(kind, n=200)
        assert ends(observed(make("percentile", percentile=100.0), tensors)) == ends(observed(make("minmax"), tensors))

    def test_zeros_after_a_relu_count(self):
        """19 zeros and a 1: of 20 values, 90 % have rank 17.1 of |x|, and the middle 90 % end at rank 18.05."""
        x = torch.cat([torch.zeros(19), torch.ones(1)])
        width = 2 / (1 << 14)
        assert ends(observed(make("percentile", scheme="symmetric", percentile=90.0), [x])) == (-width, width)
        low, high = ends(observed(make("percentile", percentile=90.0), [x]))
        assert low == 0 and high == pytest.approx(0.05, abs=width)

    def test_it_interpolates_between_far_ranks_as_numpy_does(self):
        counts, edges = torch.tensor([3, 0, 0, 1]), torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
        for percentile in (0.0, 50.0, 75.0, 80.0, 99.0, 100.0):
            expected = np.percentile([1, 1, 1, 4], percentile)
            assert _percentile.upper_bound(edges, counts, percentile) == pytest.approx(expected)


class TestExpectedError:
    @pytest.mark.parametrize(("bits", "scheme"), list(itertools.product((2, 3, 6, 8), SCHEMES)))
    def test_against_values_spread_over_each_bin(self, bits, scheme):
        """100 bins from −1.7 to 2.9, each of them filled with 2,000 values half a gap from its ends."""
        codes, generator = Codes.of(bits, scheme), torch.Generator().manual_seed(bits)
        edges = torch.linspace(-1.7, 2.9, 101, dtype=torch.float64)
        counts = torch.randint(0, 5, (100,), generator=generator)
        low, high = torch.tensor([-1.7, -0.9, -0.1, 0.0, -4.0]), torch.tensor([2.9, 1.3, 0.2, 2.0, 5.0])
        inside = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
        data = edges[:-1, None] + (edges[1:] - edges[:-1])[:, None] * inside
        got = expected_errors(edges, counts, low, high, codes)
        for number in range(5):
            scale, zero_point = codes.grid(low[number], high[number])
            code = (data / scale.double()).round() + zero_point
            error = ((code.clamp(codes.least, codes.largest) - zero_point) * scale.double() - data).square().mean(1)
            assert float(got[number]) == pytest.approx(float((error * counts).sum()), rel=1e-4)

    def test_a_bin_without_width_is_a_single_value(self):
        """2.3 on the grid 0 … 3: seven values with an error of 0.3² each; 5 is clipped to 3."""
        codes, ends_ = Codes.of(2, "asymmetric"), (torch.zeros(1), torch.full((1,), 3.0))
        for value, error in ((2.3, 0.09), (5.0, 4.0), (3.0, 0.0)):
            edges = torch.tensor([value, value], dtype=torch.float64)
            assert float(expected_errors(edges, torch.tensor([7]), *ends_, codes)) == pytest.approx(7 * error)

    def test_in_parts(self, monkeypatch):
        edges, counts = torch.linspace(-1, 1, 33, dtype=torch.float64), torch.arange(32)
        ranges = -torch.rand(20), torch.rand(20)
        whole = expected_errors(edges, counts, *ranges, Codes.of(3, "asymmetric"))
        monkeypatch.setattr("fairquant.quantize.observers._error.AT_ONCE", 70)
        parts = expected_errors(edges, counts, *ranges, Codes.of(3, "asymmetric"))
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)


CASES = [(2, "asymmetric"), (3, "symmetric"), (4, "asymmetric"), (4, "symmetric"), (8, "asymmetric"), (8, "symmetric")]


@pytest.mark.parametrize(("bits", "scheme"), CASES)
@pytest.mark.parametrize("kind", KINDS)
class TestSearched:
    def test_never_worse_than_minmax_and_near_the_best_range_of_a_brute_force(self, bits, scheme, kind):
        codes, tensors = Codes.of(bits, scheme), batches(kind)
        data = torch.cat(tensors)
        low, high = data.min().clamp(max=0), data.max().clamp(min=0)
        plain = squared_error(data, low, high, codes)
        shares = 0.9 ** torch.arange(0, 40, dtype=torch.float64).float()
        best_together = min(squared_error(data, low * share, high * share, codes) for share in shares)
        error = squared_error(data, *observed(make("mse", bits, scheme), tensors).range(), codes)
        assert error <= plain * 1.001 and error <= best_together * 1.02
        error = squared_error(data, *observed(make("histogram", bits, scheme), tensors).range(), codes)
        assert error <= plain * 1.001 and error <= best_together * 1.02
        if bits <= 4 and not codes.symmetric:
            pairs = itertools.product(shares[::3] if low < 0 else shares[:1], shares[::3] if high > 0 else shares[:1])
            assert error <= 1.02 * min(squared_error(data, low * a, high * b, codes) for a, b in pairs)

    def test_not_worse_than_torch_ao(self, bits, scheme, kind):
        """HistogramObserver, told how many steps the grid has; left alone it assumes 256 whatever the width."""
        codes = Codes.of(bits, scheme)
        for seed in range(1 if kind == "relu6" else 2):  # on saturated data theirs takes a second
            tensors = batches(kind, seed)
            theirs = HistogramObserver(
                dtype=torch.qint8 if codes.symmetric else torch.quint8,
                qscheme=torch.per_tensor_symmetric if codes.symmetric else torch.per_tensor_affine,
                quant_min=codes.least,
                quant_max=codes.largest,
            )
            theirs.dst_nbins = 2**bits
            for x in tensors:
                theirs(x)
            scale, zero_point = theirs.calculate_qparams()
            data = torch.cat(tensors)
            rounded = torch.fake_quantize_per_tensor_affine(
                data, scale[0], zero_point[0].int(), codes.least, codes.largest
            )
            expected = float((rounded.double() - data.double()).square().sum())
            ours = observed(make("histogram", bits, scheme), tensors)
            assert squared_error(data, *ours.range(), codes) <= expected * 1.005


def test_the_ends_move_apart_in_histogram_alone():
    """One outlier above: at 4 bits it alone is clipped, and the lower end is left where it was."""
    tensors = batches("outlier")
    low, high = torch.cat(tensors).min(), torch.cat(tensors).max()
    apart, together = observed(make("histogram", 4), tensors), observed(make("mse", 4), tensors)
    assert ends(apart)[1] < 0.15 * high and ends(apart)[0] < 0.4 * low
    assert ends(together)[0] / float(low) == pytest.approx(ends(together)[1] / float(high), rel=1e-6)


def test_zeros_do_not_ask_for_a_finer_grid():
    """A million zeros beside a hundred values: the range is that of the values alone."""
    values = batches("relu", n=100, count=1)[0]
    values = values[values > 0]
    for name in ("histogram", "mse"):
        alone = ends(observed(make(name, 8), [values, torch.zeros(1)]))
        assert ends(observed(make(name, 8), [values, torch.zeros(1_000_000)])) == alone


def test_one_sided_data_leave_nothing_to_move_apart():
    for kind, scheme in itertools.product(("relu", "negative"), SCHEMES):
        tensors = batches(kind)
        apart, together = (ends(observed(make(name, 4, scheme), tensors)) for name in ("histogram", "mse"))
        codes, data = Codes.of(4, scheme), torch.cat(tensors)
        errors = [squared_error(data, torch.tensor(low), torch.tensor(high), codes) for low, high in (apart, together)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-6)
