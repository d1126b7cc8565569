"""The affine grid and its arithmetic: torch's operator, torch.ao's formula, hand values and a float64 brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.ao.quantization import MinMaxObserver

from fairquant.errors import UserError
from fairquant.quantize.affine import SMALLEST, Codes, fake_quantize_affine

SCHEMES = ("asymmetric", "symmetric")
WIDTHS = range(2, 17)
SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4, 5), (4, 8, 9, 7), (2, 0, 3)]


def bits_of(x: torch.Tensor) -> torch.Tensor:
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def torchs(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, codes: Codes) -> torch.Tensor:
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, codes.least, codes.largest)


def torchs_grid(low: float, high: float, codes: Codes, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """torch.ao's grid for a range: its observer is shown the two ends."""
    scheme = torch.per_tensor_symmetric if codes.symmetric else torch.per_tensor_affine
    observer = MinMaxObserver(
        dtype=torch.qint32, qscheme=scheme, quant_min=codes.least, quant_max=codes.largest, eps=eps
    )
    observer(torch.tensor([low, high]))
    scale, zero_point = observer.calculate_qparams()
    return scale[0], zero_point[0].to(torch.int32)


class TestCodes:
    @pytest.mark.parametrize("bits", WIDTHS)
    def test_asymmetric_uses_every_code_symmetric_leaves_one_out(self, bits):
        assert Codes.of(bits, "asymmetric") == Codes(0, 2**bits - 1, symmetric=False)
        assert Codes.of(bits, "symmetric") == Codes(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1, symmetric=True)

    @pytest.mark.parametrize("bits", [-1, 0, 1, 17, 32])
    def test_a_width_without_a_grid_is_refused(self, bits):
        with pytest.raises(UserError, match=rf"^activation bits: got {bits}; allowed: 2 to 16$"):
            Codes.of(bits, "symmetric")

    def test_an_unknown_scheme_is_refused(self):
        with pytest.raises(UserError, match=r"^activation scheme: got 'affine'; allowed: asymmetric \| symmetric$"):
            Codes.of(8, "affine")


class TestGrid:
    @pytest.mark.parametrize(("bits", "scheme"), list(itertools.product(WIDTHS, SCHEMES)))
    def test_is_torch_aos_to_the_last_bit(self, bits, scheme):
        codes, generator = Codes.of(bits, scheme), torch.Generator().manual_seed(bits)
        ends = torch.randn(30, 2, generator=generator).sort(1).values * torch.logspace(-12, 12, 30)[:, None]
        ends[:5] = ends[:5].abs().sort(1).values  # all above 0
        ends[5:9] = -ends[5:9].abs().sort(1, descending=True).values  # all below
        ends[9], ends[10] = torch.tensor([-3.0, 0.0]), torch.tensor([0.0, 3.0])
        for low, high in ends:
            scale, zero_point = codes.grid(low, high)
            expected_scale, expected_zero_point = torchs_grid(float(low), float(high), codes, SMALLEST)
            assert torch.equal(scale, expected_scale) and torch.equal(zero_point, expected_zero_point)

    @pytest.mark.parametrize(("bits", "scheme"), list(itertools.product((2, 8, 16), SCHEMES)))
    def test_is_torch_aos_as_it_comes_where_its_least_scale_does_not_bind(self, bits, scheme):
        codes = Codes.of(bits, scheme)
        for low, high in ((-0.3, 2.0), (0.5, 4.0), (-7.0, -1.0)):
            expected = torchs_grid(low, high, codes, torch.finfo(torch.float32).eps)
            assert codes.grid(torch.tensor(low), torch.tensor(high)) == expected

    @pytest.mark.parametrize(("bits", "scheme"), list(itertools.product(WIDTHS, SCHEMES)))
    def test_zero_is_a_code_and_the_range_is_held_up_to_half_a_step(self, bits, scheme):
        codes = Codes.of(bits, scheme)
        low, high = torch.randn(2, 200, generator=torch.Generator().manual_seed(bits)).sort(0).values
        scale, zero_point = codes.grid(low, high)
        assert scale.dtype == torch.float32 and zero_point.dtype == torch.int32
        assert ((zero_point >= codes.least) & (zero_point <= codes.largest) & (scale > 0)).all()
        step, shift = scale.double(), zero_point.double()
        assert ((codes.least - shift) * step <= low.clamp(max=0) + 0.5001 * step).all()
        assert ((codes.largest - shift) * step >= high.clamp(min=0) - 0.5001 * step).all()

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_a_range_of_nothing_but_zero_has_an_ordinary_scale(self, scheme):
        codes, zero = Codes.of(8, scheme), torch.tensor(0.0)
        scale, zero_point = codes.grid(zero, zero)
        assert (float(scale), int(zero_point)) == (1.0, 0)
        x = torch.zeros(3)
        assert torch.equal(fake_quantize_affine(x, scale, zero_point, codes), x)

    @pytest.mark.parametrize("scheme", SCHEMES)
    @pytest.mark.parametrize("high", [1e-45, 1e-38, 1e-30, 1e-20])
    def test_tiny_ranges_have_usable_steps(self, scheme, high):
        scale, zero_point = Codes.of(16, scheme).grid(torch.tensor(-high), torch.tensor(high))
        assert float(scale) == SMALLEST and 0 <= int(zero_point) <= 65535
        assert torch.isfinite(1 / scale) and float(scale * 2.0**-60) >= torch.finfo(torch.float32).tiny

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_nan_is_not_hidden(self, scheme):
        scale, _ = Codes.of(8, scheme).grid(torch.tensor(torch.nan), torch.tensor(torch.nan))
        assert scale.isnan()

    def test_hand_values(self):
        """[-1, 2] at 2 bits: Δ = 3/3, z = 1; at 3 bits symmetric: Δ = 2/3."""
        low, high = torch.tensor(-1.0), torch.tensor(2.0)
        assert Codes.of(2, "asymmetric").grid(low, high) == (torch.tensor(1.0), torch.tensor(1))
        assert Codes.of(3, "symmetric").grid(low, high) == (torch.tensor(2.0) / 3, torch.tensor(0))


def cases(bits: int, scheme: str, shape: tuple[int, ...]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Tensors with clipped values, ties and zeros of both signs; scales of all sizes; zero points at both ends."""
    codes, generator = Codes.of(bits, scheme), torch.Generator().manual_seed(bits * 100 + len(shape))
    middle = (codes.least + codes.largest + 1) // 2
    points = [0] if codes.symmetric else sorted({codes.least, 1, middle, codes.largest})
    found = []
    for scale, zero_point in itertools.product((0.05, 3e-7, 0.7e4), points):
        spread = (codes.largest - codes.least) * scale / 2
        x = torch.randn(shape, generator=generator) * spread
        flat = x.reshape(-1)
        if len(flat) >= 7:
            flat[:5] = (torch.arange(5) - 2.5) * scale  # ties, up to rounding
            flat[5], flat[6] = 0.0, -0.0
        found.append((flat.reshape(shape), torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32)))
    return found


class TestFakeQuantize:
    @pytest.mark.parametrize(("bits", "scheme"), list(itertools.product(WIDTHS, SCHEMES)))
    def test_values_and_gradients_are_torchs_to_the_last_bit(self, bits, scheme):
        codes = Codes.of(bits, scheme)
        for shape in SHAPES:
            for x, scale, zero_point in cases(bits, scheme, shape):
                ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
                got, expected = (
                    fake_quantize_affine(ours, scale, zero_point, codes),
                    torchs(theirs, scale, zero_point, codes),
                )
                assert torch.equal(bits_of(got), bits_of(expected))
                upstream = torch.randn(shape)
                got.backward(upstream)
                expected.backward(upstream)
                assert torch.equal(ours.grad, theirs.grad)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize(("bits", "scheme"), list(itertools.product((2, 8, 16), SCHEMES)))
    def test_other_types_come_out_as_they_went_in(self, dtype, bits, scheme):
        codes = Codes.of(bits, scheme)
        for x, scale, zero_point in cases(bits, scheme, (4, 8, 9, 7))[:4]:
            ours = x.to(dtype).requires_grad_()
            got = fake_quantize_affine(ours, scale, zero_point, codes)
            theirs = ours.detach().float().requires_grad_()
            expected = torchs(theirs, scale, zero_point, codes)
            assert got.dtype == dtype and torch.equal(bits_of(got), bits_of(expected.to(dtype)))
            upstream = torch.randn(x.shape).to(dtype)
            got.backward(upstream)
            expected.backward(upstream.to(expected.dtype))
            assert ours.grad.dtype == dtype and torch.equal(ours.grad, theirs.grad.to(dtype))

    def test_float64_stays_float64(self):
        """torch's kernel rounds the product to float32."""
        codes = Codes.of(8, "asymmetric")
        x = torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        scale, zero_point = codes.grid(x.min().float(), x.max().float())
        got = fake_quantize_affine(x, scale, zero_point, codes)
        assert torch.equal(got.float(), torchs(x, scale, zero_point, codes).float())
        assert torch.equal(got / scale.double(), (got / scale.double()).round())

    def test_against_the_formula_in_float64(self):
        """Away from ties, where float32 decides by its rounding of x/Δ."""
        for (bits, scheme), seed in itertools.product(itertools.product((2, 3, 5, 8, 12), SCHEMES), range(3)):
            codes = Codes.of(bits, scheme)
            x = torch.randn(500, generator=torch.Generator().manual_seed(seed))
            scale, zero_point = codes.grid(x.min() * 0.8, x.max() * 0.8)
            v = x.double() / scale.double()
            clear = ((v - v.floor() - 0.5).abs() > 1e-3).numpy()
            code = (v.round() + zero_point).clamp(codes.least, codes.largest)
            expected = (code - zero_point) * scale.double()
            got = fake_quantize_affine(x, scale, zero_point, codes).double()
            torch.testing.assert_close(got[clear], expected[clear], rtol=1e-6, atol=0)

    def test_hand_values(self):
        """Δ = 0.5, z = 1, codes 0 … 3: −0.5, 0, 0.5, 1; the tie 0.25 goes to the even multiple."""
        x = torch.tensor([-9.0, -0.76, -0.74, 0.25, 0.26, 0.75, 1.24, 1.26, 9.0], requires_grad=True)
        out = fake_quantize_affine(x, torch.tensor(0.5), torch.tensor(1), Codes.of(2, "asymmetric"))
        assert out.tolist() == [-0.5, -0.5, -0.5, 0.0, 0.5, 1.0, 1.0, 1.0, 1.0]
        out.sum().backward()
        assert x.grad.tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0]

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_what_torchs_kernel_leaves_undefined(self, scheme):
        codes, x = Codes.of(4, scheme), torch.tensor([torch.inf, -torch.inf, torch.nan, 3e38, -3e38])
        scale, zero_point = codes.grid(torch.tensor(-0.5), torch.tensor(1.0))
        top, bottom = ((end - int(zero_point)) * scale for end in (codes.largest, codes.least))
        out = fake_quantize_affine(x, scale, zero_point, codes)
        assert torch.equal(out[[0, 1, 3, 4]], torch.stack([top, bottom, top, bottom])) and out[2].isnan()

    @pytest.mark.parametrize("view", ["channels_last", "transposed", "strided", "expanded"])
    def test_any_memory_format(self, view):
        x = torch.randn(4, 6, 5, 3)
        x = {
            "channels_last": x.to(memory_format=torch.channels_last),
            "transposed": x.transpose(1, 2),
            "strided": x[:, ::2],
            "expanded": x[:1].expand(4, -1, -1, -1),
        }[view]
        scale, zero_point, codes = torch.tensor(0.1), torch.tensor(3), Codes.of(4, "asymmetric")
        before, leaf = x.clone(), x.detach().requires_grad_()
        out = fake_quantize_affine(leaf, scale, zero_point, codes)
        out.square().sum().backward()
        plain = x.contiguous().requires_grad_()
        expected = fake_quantize_affine(plain, scale, zero_point, codes)
        expected.square().sum().backward()
        assert torch.equal(out, expected) and torch.equal(leaf.grad, plain.grad) and torch.equal(x, before)
        if view == "channels_last":
            assert out.is_contiguous(memory_format=torch.channels_last)
            assert leaf.grad.is_contiguous(memory_format=torch.channels_last)

    def test_is_idempotent(self):
        codes, x = Codes.of(5, "asymmetric"), torch.randn(1000, generator=torch.Generator().manual_seed(0))
        scale, zero_point = codes.grid(x.min(), x.max())
        once = fake_quantize_affine(x, scale, zero_point, codes)
        assert torch.equal(fake_quantize_affine(once, scale, zero_point, codes), once)
        assert len(once.unique()) <= 32
