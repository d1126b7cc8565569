import numpy as np
import pytest

from fairquant.data.store import Store
from fairquant.errors import ArtifactError


@pytest.fixture
def folder(tmp_path, make_store):
    make_store(tmp_path / "prepared", n_per_group=10, groups=("female × <60", "a,b\n"), classes=("x", "y"))
    return tmp_path / "prepared"


def test_rows_belong_together(folder):
    store = Store.open(folder)
    assert store.images.shape == (20, 16, 16, 3) and isinstance(store.images, np.memmap)
    assert store.labels.dtype == store.groups.dtype == np.int64
    assert store.group_names == ("female × <60", "a,b\n") and store.classes == ("x", "y")
    assert store.groups.tolist() == [0] * 10 + [1] * 10
    assert store.labels.tolist() == [0, 1] * 10
    assert store.ids[3] == "s3" and store.columns["group_name"][15] == "a,b\n"
    parts = [store.indices(split) for split in ("train", "val", "test")]
    assert parts[0].dtype == np.int64 and all((np.diff(part) > 0).all() for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(20))
    assert store.indices("none").tolist() == []


def test_images_are_read_only(folder):
    with pytest.raises(ValueError, match="read-only"):
        Store.open(folder).images[0] = 0


@pytest.mark.parametrize("name", ["images.npy", "samples.csv", "meta.json"])
def test_an_absent_file_names_the_way_out(folder, name):
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=rf"{name}: not found; run the stage that writes it \(dvc repro\)$"):
        Store.open(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("images.npy", b"junk", "not a readable array"),
        ("samples.csv", b'id,"', "not valid csv"),
        ("samples.csv", b"\xff\xfe", "not valid csv"),
        ("samples.csv", b"", r"got the columns \[\]; allowed: the samples.csv of the prepare stage"),
        ("samples.csv", b"id,label,group,split\n1,2\n", "allowed: the samples.csv of the prepare stage"),
        ("samples.csv", b"id,label,group,split\ns,0,0,train\n", "got 20 images for 1 samples"),
        ("samples.csv", b"id,label,group,split\n" + b"s,2,0,train\n" * 20, r"do not match \(code 2 for 2 names\)"),
        ("samples.csv", b"id,label,group,split\n" + b"s,x,0,train\n" * 20, "do not match"),
        ("samples.csv", b"id,label,group,split\n" + b"s,9999999999999999999,0,train\n" * 20, "do not match"),
        ("meta.json", b"{}", "got no classes, groups, image_size, mean, std, checksum; dvc repro writes it anew"),
        ("meta.json", b"{", "not valid JSON"),
        (
            "samples.csv",
            b"id,label,group,split\n" + b"s,0,0,trein\n" * 20,
            "got the split 'trein'; allowed: train | val",
        ),
    ],
)
def test_a_damaged_file_is_one_line(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=message) as caught:
        Store.open(folder)
    assert "\n" not in str(caught.value)


def test_an_array_of_another_kind(folder):
    np.save(folder / "images.npy", np.zeros((20, 4, 4), np.float32))
    with pytest.raises(ArtifactError, match=r"got float32 \(20, 4, 4\); allowed: uint8 \(N, H, W, 3\)"):
        Store.open(folder)


def test_an_array_that_would_need_pickle_is_refused(folder):
    np.save(folder / "images.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match="not a readable array"):
        Store.open(folder)
