import threading

import numpy as np
import pytest
import torch

from fairquant.data.batches import iterate, n_batches

CPU = torch.device("cpu")


@pytest.fixture
def store(tmp_path, make_store):
    return make_store(tmp_path / "prepared", n_per_group=30)


def batches(store, indices=None, **options):
    given = {"batch_size": 8, "device": CPU, "prefetch": False}
    return list(iterate(store, store.indices("train") if indices is None else indices, **{**given, **options}))


def test_images_are_normalised_channels_last_float32(store):
    batch = batches(store)[0]
    assert batch.images.dtype == torch.float32 and batch.images.shape == (8, 3, 16, 16)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    pixels = store.images[batch.indices].astype(np.float64) / 255
    oracle = ((pixels - store.meta["mean"]) / store.meta["std"]).transpose(0, 3, 1, 2)
    assert np.abs(batch.images.numpy() - oracle).max() < 1e-5
    assert batch.labels.dtype == batch.groups.dtype == torch.int64
    assert batch.labels.tolist() == store.labels[batch.indices].tolist()
    assert batch.groups.tolist() == store.groups[batch.indices].tolist()


def test_the_train_split_is_normalised_to_zero_mean_unit_deviation(store):
    images = torch.cat([batch.images for batch in batches(store)]).double()
    assert images.mean(dim=(0, 2, 3)).abs().max() < 1e-6
    assert (images.var(dim=(0, 2, 3), unbiased=False).sqrt() - 1).abs().max() < 1e-6


def test_without_a_seed_the_order_is_kept_and_nothing_is_left_out(store):
    rows = store.indices("train")
    assert np.concatenate([batch.indices for batch in batches(store)]).tolist() == rows.tolist()
    assert [len(batch.indices) for batch in batches(store)] == [8, 8, 8, 8, 4]
    assert [len(batch.indices) for batch in batches(store, drop_last=True)] == [8, 8, 8, 8]
    assert len(batches(store)) == n_batches(36, 8) and len(batches(store, drop_last=True)) == n_batches(36, 8, True)


def test_the_seed_decides_the_order(store):
    def order(seed):
        return np.concatenate([batch.indices for batch in batches(store, shuffle_seed=seed)]).tolist()

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == store.indices("train").tolist() != order(1)


@pytest.mark.parametrize("augment", ["off", "light", "paper"])
def test_prefetching_changes_nothing(store, augment):
    plain = batches(store, shuffle_seed=3, augment=augment)
    ahead = batches(store, shuffle_seed=3, augment=augment, prefetch=True)
    again = batches(store, shuffle_seed=3, augment=augment, prefetch=True)
    assert len(plain) == len(ahead) == len(again) == 5
    for one, two, three in zip(plain, ahead, again, strict=True):
        assert torch.equal(one.images, two.images) and torch.equal(two.images, three.images)
        assert one.indices.tolist() == two.indices.tolist()


def test_augmentation_does_not_depend_on_the_batch_size(store):
    small = torch.cat([batch.images for batch in batches(store, shuffle_seed=3, augment="light")])
    large = torch.cat([batch.images for batch in batches(store, shuffle_seed=3, augment="light", batch_size=36)])
    assert torch.allclose(small, large, atol=1e-6)


def test_the_global_random_state_is_neither_read_nor_moved(store):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = batches(store, shuffle_seed=3, augment="paper")
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    two = batches(store, shuffle_seed=3, augment="paper")
    assert all(torch.equal(a.images, b.images) for a, b in zip(one, two, strict=True))


def test_leaving_early_ends_the_thread(store):
    stream = iterate(store, store.indices("train"), batch_size=4, device=CPU)
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_no_samples_no_batches(store):
    assert batches(store, indices=np.zeros(0, np.int64), prefetch=True) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "strong"}, r"augment: got 'strong'; allowed: off \| light \| paper"),
        ({"batch_size": 0}, "batch_size: got 0; allowed: at least 1"),
    ],
)
def test_wrong_settings_are_refused(store, options, message):
    with pytest.raises(ValueError, match=message):
        batches(store, **options)
