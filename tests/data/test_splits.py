from collections import Counter

import numpy as np
import pytest

from fairquant.data.splits import assign_splits, evenly_spaced, stratified_subset, subset_count


def sample(n=1000, classes=3, groups=4, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, classes, n), random.choice(groups, n, p=[0.5, 0.3, 0.15, 0.05][:groups])


def assign(labels, groups, seed=0, val=0.1, test=0.2, **kw):
    return assign_splits(labels, groups, val_fraction=val, test_fraction=test, seed=seed, **kw)


def test_groups_get_their_share_to_one_sample_and_classes_within_groups_too():
    labels, groups = sample()
    splits = assign(labels, groups)
    for group in range(4):
        n = (groups == group).sum()
        assert (splits[groups == group] == "test").sum() == int(n * 0.2 + 0.5)
        assert abs((splits[groups == group] == "val").sum() - n * 0.1) <= 1
        for label in range(3):
            cell = (groups == group) & (labels == label)
            assert abs((splits[cell] == "test").sum() - cell.sum() * 0.2) <= 1
            assert abs((splits[cell] == "val").sum() - cell.sum() * 0.1) <= 1.5


def test_the_seed_decides():
    labels, groups = sample()
    assert np.array_equal(assign(labels, groups), assign(labels, groups))
    assert not np.array_equal(assign(labels, groups), assign(labels, groups, seed=1))


def test_the_test_split_does_not_depend_on_the_val_fraction():
    labels, groups = sample()
    few, many = assign(labels, groups, val=0.05), assign(labels, groups, val=0.4)
    assert np.array_equal(few == "test", many == "test")


def test_each_sample_is_equally_likely_to_test():
    labels, groups = np.arange(20) % 2, np.zeros(20, np.int64)
    hits = sum((assign(labels, groups, seed=seed) == "test").astype(int) for seed in range(500))
    assert abs(hits - 100).max() < 40, "20 % of 500 draws; the binomial deviation is 9"


def test_three_samples_of_a_group_are_enough_for_three_splits():
    splits = assign(np.zeros(3, np.int64), np.zeros(3, np.int64))
    assert sorted(splits) == ["test", "train", "val"]


def test_clusters_stay_whole_and_shares_hold():
    random = np.random.default_rng(1)
    cluster = np.repeat(np.arange(600), random.integers(1, 6, 600))
    labels, groups = (cluster * 7 % 3).astype(np.int64), (cluster % 4).astype(np.int64)
    shuffled = random.permutation(len(cluster))
    names = [f"lesion {c}" for c in cluster[shuffled]]
    splits = assign(labels[shuffled], groups[shuffled], clusters=names)
    sides = {}
    for name, split in zip(names, splits, strict=True):
        sides.setdefault(name, set()).add(split)
    assert all(len(found) == 1 for found in sides.values())
    assert (splits == "test").mean() == pytest.approx(0.2, abs=0.02)
    assert (splits == "val").mean() == pytest.approx(0.1, abs=0.02)


def test_a_full_published_split_is_used_as_it_is():
    given = ["train", "val", "test"] * 5
    assert assign(np.zeros(15, np.int64), np.zeros(15, np.int64), given=given).tolist() == given


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_without_a_published_val_it_comes_from_train(held_out):
    labels, groups = sample(200)
    given = np.where(np.arange(200) < 150, "train", held_out)
    splits = assign(labels, groups, given=given.tolist())
    assert Counter(splits[150:].tolist()) == {"test": 50}
    assert abs((splits[:150] == "val").sum() - 15) <= 2
    assert not (splits[:150] == "test").any()


def test_val_from_train_keeps_clusters_whole():
    clusters = [str(index // 5) for index in range(200)]
    given = ["train" if index < 150 else "test" for index in range(200)]
    splits = assign(np.zeros(200, np.int64), np.zeros(200, np.int64), given=given, clusters=clusters)
    assert all(len(set(splits[start : start + 5])) == 1 for start in range(0, 200, 5))
    assert (splits == "val").sum() == 15


def test_no_samples_make_no_splits():
    assert assign(np.zeros(0, np.int64), np.zeros(0, np.int64)).shape == (0,)


def test_evenly_spaced():
    assert evenly_spaced(np.arange(10), 5, 0.0).tolist() == [0, 2, 4, 6, 8]
    assert evenly_spaced(np.arange(10), 5, 0.999).tolist() == [1, 3, 5, 7, 9]
    assert evenly_spaced(np.arange(10), 0, 0.5).tolist() == []


@pytest.mark.parametrize("count", [12, 40, 333, 1000])
def test_a_subset_has_the_count_the_proportions_and_every_cell(count):
    labels, groups = sample()
    rows = stratified_subset(labels, groups, count, seed=0)
    assert len(rows) == count == len(set(rows.tolist()))
    assert np.array_equal(rows, np.sort(rows))
    cells = Counter(zip(labels.tolist(), groups.tolist(), strict=True))
    kept = Counter(zip(labels[rows].tolist(), groups[rows].tolist(), strict=True))
    assert set(kept) == set(cells)
    for cell, size in cells.items():
        exact = 1 + (size - 1) * (count - 12) / (1000 - 12)
        assert abs(kept[cell] - exact) < 1


def test_a_subset_smaller_than_the_number_of_cells():
    labels, groups = sample()
    assert len(stratified_subset(labels, groups, 5, seed=0)) == 5


def test_subset_counts():
    assert [subset_count(amount, 7) for amount in (1.0, 0.5, 0.01, 2, 100)] == [7, 4, 1, 2, 100]
