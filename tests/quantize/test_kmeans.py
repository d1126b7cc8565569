"""k-means of rows: against every partition, dynamic programming in float64, scikit-learn, and the best grid."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from fairquant.quantize._kmeans import AscendingRows, companded, kmeans, lloyd, means_of, start_cuts
from fairquant.quantize._partition import best_cuts
from fairquant.quantize.codebook import nearest
from fairquant.quantize.scales._least_squares import least_squares


def draw(kind: str, rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Return weights (rows, length) of a shape that weights have, or may have."""
    random = np.random.default_rng(seed)
    values = {
        "normal": lambda: random.normal(0, 0.02, (rows, length)),
        "laplace": lambda: random.laplace(0.01, 0.02, (rows, length)),
        "uniform": lambda: random.uniform(-1, 1, (rows, length)),
        "heavy": lambda: random.standard_t(2, (rows, length)),
        "few values": lambda: random.integers(-3, 4, (rows, length)) / 8,
        "far from 0": lambda: 1000 + random.normal(0, 0.02, (rows, length)),
    }
    return torch.from_numpy(values[kind]().astype(np.float32))


KINDS = ("normal", "laplace", "uniform", "heavy", "few values", "far from 0")


def error(rows: torch.Tensor, centroids: torch.Tensor) -> np.ndarray:
    """Return Σ (w − nearest centroid)² of each row in float64, by the book."""
    distance = np.abs(rows.double().numpy()[:, :, None] - centroids.double().numpy()[:, None, :]).min(axis=2)
    return (distance**2).sum(axis=1)


def optimum(row: np.ndarray, clusters: int) -> float:
    """Return the least error by the plain O(k n²) recursion."""
    values = np.sort(row.astype(np.float64))
    cost = {}
    for start, end in itertools.combinations(range(len(values) + 1), 2):
        run = values[start:end]
        cost[start, end] = float(((run - run.mean()) ** 2).sum())
    least = [0.0] + [cost[0, end] for end in range(1, len(values) + 1)]
    for _ in range(1, clusters):
        least = [0.0] + [
            min([least[end], *(least[start] + cost[start, end] for start in range(1, end))])
            for end in range(1, len(values) + 1)
        ]
    return least[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clusters", [1, 2, 3, 5, 16])
def test_short_rows_end_at_the_optimum(kind, clusters):
    rows = draw(kind, 3, 40)
    found = error(rows, kmeans(rows, clusters, iterations=50))
    expected = [optimum(row.numpy(), clusters) for row in rows]
    # float32 centroids: half a unit in the last place of each weight's distance
    assert found == pytest.approx(expected, rel=1e-5, abs=40 * (2.0**-24 * float(rows.abs().max())) ** 2)


def test_every_partition_of_a_few_values():
    row = draw("laplace", 1, 9, seed=3)
    values = np.sort(row[0].double().numpy())
    parts = (np.split(values, cuts) for cuts in itertools.combinations(range(1, 9), 3))
    least = min(sum(float(((part - part.mean()) ** 2).sum()) for part in split) for split in parts)
    assert error(row, kmeans(row, 4, iterations=50))[0] == pytest.approx(least, rel=1e-6)


@pytest.mark.parametrize("kind", ["normal", "laplace", "heavy"])
@pytest.mark.parametrize(("clusters", "ratio"), [(4, 1.0001), (16, 1.001), (64, 1.01), (256, 1.5)])
def test_long_rows_are_near_the_optimum(kind, clusters, ratio):
    """The optimum is that of the dynamic program over all weights, which the tests above check."""
    rows = draw(kind, 1, 1000)
    ascending = AscendingRows.of(rows)
    ends = torch.arange(1001)[None]
    sums = (ends.double(), ascending.first, ascending.second)
    best = means_of(ascending, torch.from_numpy(best_cuts(*(part.numpy() for part in sums), clusters)))
    least = float(ascending.errors(best))
    found = error(rows, kmeans(rows, clusters, iterations=50))[0]
    assert least * (1 - 1e-5) <= found <= ratio * least


@pytest.mark.parametrize("clusters", [4, 16])
def test_not_worse_than_scikit_learn(clusters):
    rows = draw("laplace", 2, 1000)
    for row, found in zip(rows, error(rows, kmeans(rows, clusters, iterations=50)), strict=True):
        theirs = KMeans(clusters, n_init=2, random_state=0).fit(row[:, None].double().numpy()).inertia_
        assert found <= 1.0001 * theirs


@pytest.mark.parametrize("kind", KINDS[:5])
@pytest.mark.parametrize("length", [9, 147, 1500])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_never_worse_than_the_best_grid_of_as_many_bits(kind, length, bits):
    """A grid has 2^b − 1 levels and one step size; at 1 bit it is ±mean |w|."""
    rows = draw(kind, 2, length, seed=length + bits)
    centroids = kmeans(rows, min(2**bits, length), iterations=50)
    if bits == 1:
        size = rows.abs().mean(dim=1, keepdim=True)
        on_grid = torch.where(rows < 0, -size, size)
    else:
        top = 2.0 ** (bits - 1) - 1
        step = least_squares(rows, torch.full((2, 1), top))
        on_grid = (rows / step).round().clamp(-top, top) * step
    grid = (on_grid.double() - rows.double()).square().sum(1).numpy()
    assert (error(rows, centroids) <= grid * (1 + 1e-6) + 1e-12 * float(rows.square().sum())).all()


class TestLloyd:
    @pytest.mark.parametrize("kind", KINDS[:4])
    def test_the_error_never_rises(self, kind):
        rows = draw(kind, 4, 500)
        ascending = AscendingRows.of(rows)
        start = ascending.values[:, torch.arange(12) * 40]  # a poor one, so that there is something to do
        errors = [ascending.errors(lloyd(ascending, start, iterations=number)).numpy() for number in range(12)]
        slack = 1e-12 * float(ascending.second[:, -1].max())
        assert all((after <= before + slack).all() for before, after in itertools.pairwise(errors))
        assert (errors[-1] < errors[0]).all()

    def test_it_ends_where_centroids_are_means_and_codes_nearest(self):
        rows = draw("normal", 3, 400)
        ascending = AscendingRows.of(rows)
        centroids = lloyd(ascending, means_of(ascending, companded(ascending, 8)), iterations=10_000)
        for values, found in zip(ascending.values.numpy(), centroids.numpy(), strict=True):
            codes = np.abs(values[:, None] - found).argmin(axis=1)
            np.testing.assert_allclose([values[codes == code].mean() for code in range(8)], found, rtol=0, atol=1e-12)

    def test_an_empty_cluster_takes_the_furthest_weight(self):
        ascending = AscendingRows.of(torch.tensor([[0.0, 0.0, 0.0, 1.0, 2.0, 9.0]]))  # 2 in the mean
        start = torch.tensor([[-2.0, 50.0, 60.0]], dtype=torch.float64)
        rounds = [lloyd(ascending, start, iterations=number) + ascending.mean for number in (2, 3, 20)]
        # all in the first; 9 is taken, then 2 from {0, 0, 0, 1, 2}; {0, 0, 0, 1}, {2}, {9} stays
        np.testing.assert_allclose(torch.cat(rounds).numpy(), [[0.6, 2, 9], [0.25, 2, 9], [0.25, 2, 9]], atol=1e-12)

    def test_as_many_clusters_as_different_values_leave_no_error(self):
        rows = draw("few values", 3, 600)
        ascending = AscendingRows.of(rows)
        start = torch.zeros(3, 7, dtype=torch.float64)
        assert float(ascending.errors(lloyd(ascending, start, iterations=20)).max()) < 1e-9
        assert error(rows, kmeans(rows, 64, iterations=20)).max() < 1e-9

    def test_iterations_are_bounded(self, monkeypatch):
        ascending = AscendingRows.of(draw("heavy", 1, 3000))
        seen = []
        original = AscendingRows.cuts
        monkeypatch.setattr(AscendingRows, "cuts", lambda rows, c: (seen.append(1), original(rows, c))[1])
        lloyd(ascending, ascending.values[:, torch.arange(30)], iterations=4)
        assert len(seen) == 1 + 4


class TestStart:
    def test_no_row_influences_another(self):
        rows = draw("laplace", 6, 3000)
        together = kmeans(rows, 32, iterations=7)
        alone = torch.cat([kmeans(row[None], 32, iterations=7) for row in rows])
        assert torch.equal(together, alone)

    def test_order_of_weights_and_memory_do_not_matter(self):
        rows = draw("normal", 3, 800)
        shuffled = rows[:, torch.randperm(800, generator=torch.Generator().manual_seed(0))]
        expected = kmeans(rows, 16, iterations=9)
        assert torch.equal(kmeans(shuffled, 16, iterations=9), expected)
        assert torch.equal(kmeans(rows.T.contiguous().T, 16, iterations=9), expected)

    def test_companded_cuts_give_equal_shares_of_the_cube_root_of_density(self):
        """Density 3w² on (0, 1]: ∫ density^(1/3) ∝ w^(5/3), so the cut of half the share lies at 0.5^(3/5)."""
        values = ((np.arange(200_000) + 0.5) / 200_000) ** (1 / 3)
        rows = AscendingRows.of(torch.from_numpy(values)[None])
        cuts = companded(rows, 2)
        assert cuts[0].tolist()[::2] == [0, 200_000]
        assert values[cuts[0, 1]] == pytest.approx(0.5**0.6, abs=2e-3)

    @pytest.mark.parametrize(("length", "clusters"), [(1, 1), (2, 2), (5, 5), (300, 2), (3000, 256), (600, 200)])
    def test_cuts_ascend_from_end_to_end(self, length, clusters):
        cuts = start_cuts(AscendingRows.of(draw("heavy", 2, length)), clusters)
        assert cuts.shape == (2, clusters + 1)
        assert cuts[:, 0].tolist() == [0, 0] and cuts[:, -1].tolist() == [length, length]
        assert bool((cuts.diff() >= 0).all())

    def test_constant_rows(self):
        assert kmeans(torch.full((2, 300), 0.25), 4, iterations=5).tolist() == [[0.25] * 4] * 2


def test_cuts_of_more_rows_than_are_held_at_once(monkeypatch):
    rows = AscendingRows.of(draw("normal", 5, 50))
    sums = [part.numpy() for part in (torch.arange(51).expand(5, -1).double(), rows.first, rows.second)]
    expected = best_cuts(*sums, 4)
    monkeypatch.setattr("fairquant.quantize._partition.AT_ONCE", 2 * 51 * 4)
    assert np.array_equal(best_cuts(*sums, 4), expected)


def test_nearest_is_the_nearest():
    rows, centroids = draw("normal", 3, 100), draw("normal", 3, 16, seed=1).sort(dim=1).values
    expected = (rows[:, :, None] - centroids[:, None, :]).abs().argmin(dim=2)
    assert torch.equal(nearest(rows, centroids).long(), expected)
