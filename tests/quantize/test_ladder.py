"""Step sizes at several widths against those of a WeightQuantizer, layer by layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fairquant import plugins
from fairquant.errors import ConfigError, UserError
from fairquant.quantize import rows
from fairquant.quantize.ladder import quantize_rows, step_sizes
from fairquant.quantize.quantizer import WeightQuantizer
from fairquant.quantize.rows import as_rows, inner_order

NAMES = plugins.names("scale")
WIDTHS = (4, 0, 1, 2, 3, 8, 32, 5, 6, 7, 10)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).pow(3)


@pytest.mark.parametrize("name", NAMES)
class TestAgainstTheQuantizer:
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_channels(self, name, layout):
        weight = draw(12, 5, 3, 3).to(memory_format=layout)
        channels = as_rows(weight, inner_order(weight))
        found = step_sizes(channels, WIDTHS, method=name, percentile=97.0)
        assert found.shape == (12, len(WIDTHS))
        for column, width in enumerate(WIDTHS):
            bits = torch.full((12,), width, dtype=torch.uint8)
            quantizer = WeightQuantizer(weight, bits, method=name, percentile=97.0)
            assert torch.equal(found[:, [column]], quantizer.table(weight))
            out = as_rows(quantizer(weight).detach(), inner_order(weight))
            assert torch.equal(quantize_rows(channels, width, found[:, [column]]), out)

    def test_mixed_channels(self, name):
        """The table of a layer with a width per channel is read off the ladder."""
        weight = draw(20, 40, seed=1)
        bits = torch.tensor(WIDTHS, dtype=torch.uint8)[torch.arange(20) % len(WIDTHS)]
        quantizer = WeightQuantizer(weight, bits, method=name, percentile=97.0)
        found = step_sizes(weight, WIDTHS, method=name, percentile=97.0)
        assert torch.equal(found.gather(1, (torch.arange(20) % len(WIDTHS))[:, None]), quantizer.table(weight))

    def test_whole_layer(self, name):
        weight = draw(12, 5, 3, 3, seed=2)
        found = step_sizes(weight.reshape(1, -1), WIDTHS, method=name, percentile=97.0)
        for column, width in enumerate(WIDTHS):
            quantizer = WeightQuantizer(weight, torch.tensor(width), method=name, percentile=97.0)
            assert torch.equal(found[:, [column]], quantizer.table(weight))
            fake = quantize_rows(weight.reshape(1, -1), width, found[:, [column]])
            assert torch.equal(fake.view_as(weight), quantizer(weight).detach())

    def test_blocks_and_the_company_of_widths_do_not_matter(self, name, monkeypatch):
        weight, importance = draw(9, 70, seed=3), draw(9, 70, seed=4).abs()
        whole = step_sizes(weight, WIDTHS, method=name, percentile=97.0, importance=importance)
        monkeypatch.setattr(rows, "BLOCK", 140)
        assert torch.equal(step_sizes(weight, WIDTHS, method=name, percentile=97.0, importance=importance), whole)
        for column, width in enumerate(WIDTHS):
            alone = step_sizes(weight, [width, width], method=name, percentile=97.0, importance=importance)
            assert torch.equal(alone, whole[:, [column, column]])

    def test_zeros_and_denormals(self, name):
        weight = torch.zeros(3, 20)
        weight[1] = 1e-42
        for importance in (None, torch.zeros(3, 20)):
            found = step_sizes(weight, WIDTHS, method=name, percentile=97.0, importance=importance)
            assert torch.isfinite(found).all() and torch.isfinite(1 / found).all() and (found > 0).all()
            for column, width in enumerate(WIDTHS):
                assert torch.isfinite(quantize_rows(weight, width, found[:, [column]])).all()

    def test_importance_changes_the_weighted_methods_alone(self, name):
        weight, importance = draw(4, 60, seed=5), draw(4, 60, seed=6).square()
        plain, given = (
            step_sizes(weight, [1, 2, 3, 4], method=name, percentile=97.0, importance=which)
            for which in (None, importance)
        )
        if hasattr(plugins.load("scale", name), "sign_step"):
            assert (plain != given).any(0).all()
        else:
            assert torch.equal(plain, given)


def test_what_stands_where_nothing_is_rounded():
    found = step_sizes(draw(3, 10), [32, 0], method="weighted", percentile=100, importance=torch.ones(3, 10))
    assert torch.equal(found, torch.ones(3, 2))
    assert step_sizes(draw(3, 10), [], method="mse", percentile=100).shape == (3, 0)


def test_one_bit():
    weight, importance = draw(5, 50), torch.rand(5, 50, generator=torch.Generator().manual_seed(7)) + 0.1
    size = weight.abs().double().numpy()
    for method in NAMES:
        found = step_sizes(weight, [1], method=method, percentile=99.0).numpy()[:, 0]
        np.testing.assert_allclose(found, size.mean(1), rtol=1e-6)
    found = step_sizes(weight, [1], method="weighted", percentile=99.0, importance=importance).numpy()[:, 0]
    np.testing.assert_allclose(found, np.average(size, axis=1, weights=importance.double().numpy()), rtol=1e-6)


@pytest.mark.parametrize("granular", [False, True])
def test_a_weighted_step_is_where_a_learned_one_starts(granular):
    """Handed on as tables, the steps are used as they are, at 1 bit too, and are trained from there."""
    weight, importance = draw(4, 30, seed=8), draw(4, 30, seed=9).square()
    widths = [1, 2, 4, 8]
    bits = torch.tensor(widths, dtype=torch.uint8)
    if granular:
        table = step_sizes(weight, widths, method="weighted", percentile=100, importance=importance)
        table = table.gather(1, torch.arange(4)[:, None])
    else:
        bits = bits[0]
        flat, factors = weight.reshape(1, -1), importance.reshape(1, -1)
        table = step_sizes(flat, [1], method="weighted", percentile=100, importance=factors)
    quantizer = WeightQuantizer(weight, bits, method="weighted", table=table)
    assert torch.equal(quantizer.table(weight), table)
    assert not torch.equal(WeightQuantizer(weight, bits, method="weighted").table(weight), table)
    out = quantizer(weight)
    for row in range(4):
        step = table[row if granular else 0, :, None]
        width = widths[row] if granular else 1
        assert torch.equal(out[row].detach(), quantize_rows(weight[[row]], width, step)[0])
    assert torch.equal(out[0].detach().abs(), table[0].expand(30))
    quantizer.refresh(weight)  # of methods that measure every epoch alone
    out.sum().backward()
    assert torch.equal(quantizer.table(weight), table)
    assert (quantizer.scale.grad != 0).all()


class TestQuantizeRows:
    def test_by_the_book(self, by_the_book):
        weight = draw(3, 40, seed=10)
        for width in (0, 1, 2, 5, 8, 16, 32):
            delta = torch.tensor([[0.5], [0.1], [0.03]])
            expected = by_the_book(weight.numpy(), np.full(weight.shape, width), delta.numpy())
            np.testing.assert_allclose(quantize_rows(weight, width, delta).numpy(), expected, rtol=1e-6)

    def test_the_rows_are_left_alone(self):
        weight = draw(3, 40)
        before = weight.clone()
        assert quantize_rows(weight, 32, torch.ones(3, 1)) is weight
        quantize_rows(weight, 0, torch.ones(3, 1)).add_(1)
        assert torch.equal(weight, before)


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (torch.ones(2, 4), "importance: got shape (2, 4); allowed: (2, 3), the weights'"),
        (torch.tensor([[1.0, -0.5, 0], [0, 0, 0]]), "importance: got -0.5; allowed: finite numbers of at least 0"),
        (torch.tensor([[1.0, 0, 0], [0, torch.nan, 0]]), "importance: got nan; allowed: finite numbers of at least 0"),
        (torch.tensor([[1.0, 0, 0], [0, torch.inf, 0]]), "importance: got inf; allowed: finite numbers of at least 0"),
    ],
)
def test_wrong_importance(importance, message):
    with pytest.raises(UserError) as error:
        step_sizes(torch.ones(2, 3), [4], method="weighted", percentile=100, importance=importance)
    assert str(error.value) == message


def test_wrong_width_and_method():
    with pytest.raises(UserError) as error:
        step_sizes(torch.ones(2, 3), [4, 17], method="mse", percentile=100)
    assert str(error.value) == "bit-width: got 17; allowed: 0 to 16, or 32"
    with pytest.raises(ConfigError, match=r"scale: got 'guess'; allowed: absmax \| lsq \|"):
        step_sizes(torch.ones(2, 3), [4], method="guess", percentile=100)
