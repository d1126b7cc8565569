import hashlib
import io
import pickle
import tarfile
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from fairquant.config.load import parse_config
from fairquant.data.download import fetch_and_unpack
from fairquant.data.prepare import prepare
from fairquant.data.raw import DataRequest
from fairquant.data.sets import cifar10
from fairquant.data.sets.cifar10 import LINK, NAMES, PICKLED_LINK, Options, load
from fairquant.errors import DataError
from tests.data.archives import tar_of
from tests.data.pickles import python2_dumps
from tests.data.server import Reply

PARTS = ["test_batch", *(f"data_batch_{number}" for number in range(1, 6))]


def batch(part, n=20):
    """Return (images (n, 32, 32, 3), labels (n,)): classes in turn."""
    random = np.random.default_rng(PARTS.index(part))
    return random.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), np.arange(n) % 10


def planes(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def binary(part, n=20):
    images, labels = batch(part, n)
    return np.concatenate([labels.astype(np.uint8)[:, None], planes(images)], axis=1).tobytes()


def pickled(part, dumps=python2_dumps):
    images, labels = batch(part)
    return dumps(
        {
            "batch_label": f"batch {part}",
            "labels": labels.tolist(),
            "data": np.ascontiguousarray(planes(images)),
            "filenames": [f"{part}_{index}.png" for index in range(len(labels))],
        }
    )


FORMS = {
    "cifar-10-batches-bin": {f"{part}.bin": binary(part) for part in PARTS},
    "cifar-10-batches-py": {part: pickled(part) for part in PARTS},
    "by Python 3": {part: pickled(part, pickle.dumps) for part in PARTS},
}


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def archive(tmp_path, form, files=None, extra=()):
    """Return the archive of a form as published."""
    files = FORMS[form] if files is None else files
    tar = tar_of(tmp_path / "made.tar.gz", {f"{form}/{name}": data for name, data in files.items()}, extra=extra)
    data = tar.read_bytes()
    tar.unlink()
    return data


def config(folder, **data):
    return parse_config({"data": {"name": "cifar10", "path": str(folder), "image_size": 32, **data}, "workers": 1})


def check(raw):
    """Compare with what was written: train batches in order, then the test."""
    assert raw.problems == () and raw.classes == NAMES and raw.group_columns == ("class",)
    assert [sample.split for sample in raw.samples] == ["train"] * 100 + ["test"] * 20
    for number, part in enumerate([*PARTS[1:], PARTS[0]]):
        images, labels = batch(part)
        for index, sample in enumerate(raw.samples[20 * number : 20 * number + 20]):
            assert sample.label == NAMES[labels[index]] == sample.groups[0]
            assert sample.id == f"{part}-{index + 1:05d}" and (sample.table, sample.row) == (part, index + 1)
            assert np.array_equal(sample.image(), images[index])


@pytest.mark.parametrize("place", ["", "sub"])
@pytest.mark.parametrize("form", FORMS)
def test_both_published_forms(tmp_path, form, place):
    folder = (tmp_path / form if form in FORMS and form.startswith("cifar") else tmp_path) if place else tmp_path
    write(folder, FORMS[form])
    check(load(DataRequest(tmp_path), Options()))


def test_test_batch_is_the_test_and_val_comes_from_train(tmp_path):
    write(tmp_path / "cifar-10-batches-bin", FORMS["cifar-10-batches-bin"])
    meta = prepare(config(tmp_path, val_fraction=0.2), tmp_path / "prepared")
    assert meta["groups"] == meta["classes"] == list(NAMES)
    assert meta["splits"] == {part: dict.fromkeys(NAMES, n) for part, n in (("train", 8), ("val", 2), ("test", 2))}
    assert meta["split_source"] == "publisher; val drawn from train"
    images = np.load(tmp_path / "prepared" / "images.npy")
    assert np.array_equal(images[-20:], batch("test_batch")[0])


def test_the_binary_archive_is_fetched_once_and_nothing_else_stays(tmp_path, server, monkeypatch):
    data = archive(tmp_path, "cifar-10-batches-bin")
    url = server.serve("cifar-10-binary.tar.gz", data)
    monkeypatch.setattr(cifar10, "LINK", replace(LINK, url=url, md5=hashlib.md5(data).hexdigest()))
    for _ in range(2):
        check(load(DataRequest(tmp_path / "raw", download=True), Options()))
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["cifar-10-batches-bin"]
    assert len(server.requests["/cifar-10-binary.tar.gz"]) == 1


def test_an_archive_that_lies_there_is_unpacked_without_the_network(tmp_path, monkeypatch):
    for constant, link, form in (("LINK", LINK, "bin"), ("PICKLED_LINK", PICKLED_LINK, "py")):
        data = archive(tmp_path, f"cifar-10-batches-{form}")
        monkeypatch.setattr(cifar10, constant, replace(link, md5=hashlib.md5(data).hexdigest()))
        write(tmp_path / form, {link.name: data})
        check(load(DataRequest(tmp_path / form, download=False), Options()))
        write(tmp_path / f"{form}-wrong", {link.name: data[:-100]})
        with pytest.raises(DataError, match=f"{link.name} is there, but got the md5 .*; expected "):
            load(DataRequest(tmp_path / f"{form}-wrong"), Options())


def link_out(kind):
    info = tarfile.TarInfo("cifar-10-batches-bin/../../out" if kind == "path" else "cifar-10-batches-bin/link")
    if kind == "link":
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


@pytest.mark.parametrize("kind", ["path", "link"])
def test_an_archive_that_reaches_out_of_its_folder_is_refused(tmp_path, server, monkeypatch, kind):
    data = archive(tmp_path, "cifar-10-batches-bin", extra=[link_out(kind)])
    monkeypatch.setattr(cifar10, "LINK", replace(LINK, url=server.serve("cifar-10-binary.tar.gz", data), md5=None))
    with pytest.raises(DataError, match="refused, the member 'cifar-10-batches-bin/.*' is a (path with|link)"):
        load(DataRequest(tmp_path / "raw", download=True), Options())
    assert not any(path.is_file() and not path.name.startswith(".") for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (lambda data: Reply(data, cut=500), "the connection ended after 500 of"),
        (lambda data: Reply(data[::-1]), "got the md5 .*; expected"),
        (lambda data: Reply(data, cut=500, stall=True), "no answer in time after 500 bytes"),
        (lambda data: Reply(status=404), "HTTP 404"),
        (lambda data: Reply(status=302, headers={"Location": "file:///etc/passwd"}), "redirected to 'file:///etc/pass"),
    ],
)
def test_a_download_that_fails_is_one_line_and_leaves_nothing(tmp_path, server, monkeypatch, reply, reason):
    data = archive(tmp_path, "cifar-10-batches-bin")
    url = server.serve("cifar-10-binary.tar.gz", reply(data))
    monkeypatch.setattr(cifar10, "LINK", replace(LINK, url=url, md5=hashlib.md5(data).hexdigest()))
    monkeypatch.setattr(cifar10, "fetch_and_unpack", partial(fetch_and_unpack, timeout=0.3, attempts=1))
    with pytest.raises(DataError, match=reason) as caught:
        load(DataRequest(tmp_path / "raw", download=True), Options())
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"{url}: not fetched (") and f" {tmp_path / 'raw'} " in text
    assert "expected cifar-10-batches-bin (data_batch_1.bin to data_batch_5.bin, test_batch.bin) or cifar-10-b" in text
    assert not any(not path.name.startswith(".") for path in (tmp_path / "raw").iterdir())


def test_a_redirected_download_arrives(tmp_path, server, monkeypatch):
    data = archive(tmp_path, "cifar-10-batches-bin")
    there = server.serve("there.tar.gz", data)
    url = server.serve("cifar-10-binary.tar.gz", Reply(status=302, headers={"Location": there}))
    monkeypatch.setattr(cifar10, "LINK", replace(LINK, url=url, md5=hashlib.md5(data).hexdigest()))
    check(load(DataRequest(tmp_path / "raw", download=True), Options()))


def test_without_a_network(tmp_path, server, monkeypatch):
    server.close()
    monkeypatch.setattr(cifar10, "LINK", replace(LINK, url=server.url("cifar-10-binary.tar.gz")))
    with pytest.raises(DataError, match=f"not fetched .Connection refused; 3 attempts.; put it into {tmp_path}"):
        load(DataRequest(tmp_path, download=True), Options())
    assert list(tmp_path.iterdir()) == []


def test_absent_files(tmp_path):
    with pytest.raises(DataError) as caught:
        load(DataRequest(tmp_path), Options())
    assert str(caught.value) == (
        f"data.path: no CIFAR-10 batch in {tmp_path}; expected cifar-10-batches-bin (data_batch_1.bin to "
        "data_batch_5.bin, test_batch.bin) or cifar-10-batches-py (data_batch_1 to data_batch_5, test_batch) in "
        "data.path, or the archive cifar-10-binary.tar.gz or cifar-10-python.tar.gz (data.download: true fetches it)"
    )
    folder = tmp_path / "cifar-10-batches-bin"
    write(folder, FORMS["cifar-10-batches-bin"])
    (folder / "data_batch_2.bin").unlink()
    (folder / "test_batch.bin").unlink()
    with pytest.raises(
        DataError, match="data.path: test_batch.bin, data_batch_2.bin not found in .*-bin; expected cif"
    ):
        load(DataRequest(tmp_path, download=True), Options())


@pytest.mark.parametrize(
    ("form", "data", "message"),
    [
        ("bin", binary("data_batch_3")[:-1], "data_batch_3.bin: got 61459 bytes; allowed: records of 3073 bytes"),
        ("bin", b"", "data_batch_3.bin: got 0 bytes; allowed: records of 3073 bytes"),
        (
            "py",
            python2_dumps([1]),
            "data_batch_3: got no mapping with data and labels; allowed: a CIFAR-10 batch as pub",
        ),
        ("py", python2_dumps({"data": 1, "labels": [1]}), "got data or labels of another kind; allowed: a CIFAR-10"),
        (
            "py",
            python2_dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [256]}),
            "got data or labels of another kind",
        ),
        (
            "py",
            python2_dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}),
            "got 6144 bytes for 2×3072 values and 1 labels; allowed",
        ),
        ("py", pickle.dumps(io.BytesIO), "data_batch_3: refused, got the name _io.BytesIO; allowed: a pickle of plain"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, form, data, message):
    name = f"cifar-10-batches-{form}"
    write(tmp_path / name, FORMS[name] | {"data_batch_3" + (".bin" if form == "bin" else ""): data})
    with pytest.raises(DataError, match=message):
        load(DataRequest(tmp_path), Options())


def test_a_label_that_is_no_class_is_unknown(tmp_path):
    data = bytes([10]) + binary("data_batch_1")[1:]
    write(tmp_path, FORMS["cifar-10-batches-bin"] | {"data_batch_1.bin": data})
    with pytest.raises(
        DataError, match="1 unknown label .data_batch_1 row 1 got the label '10'; allowed: airplane | aut"
    ):
        prepare(config(tmp_path), tmp_path / "prepared")


def test_a_class_absent_from_the_test_is_a_group_absent_from_a_split(tmp_path):
    write(tmp_path, FORMS["cifar-10-batches-bin"] | {"test_batch.bin": binary("test_batch", n=9)})
    with pytest.raises(DataError, match="1 group absent from a split .the group 'truck' has no sample in test"):
        prepare(config(tmp_path), tmp_path / "prepared")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "digit"}, "data.label: got 'digit'; allowed: class"),
        ({"group": ("sex",)}, "data.group: got 'sex'; allowed: class"),
        ({"split_by": "class"}, "data.split_by: got 'class'; allowed: null for cifar10, which names no source"),
    ],
)
def test_columns_it_does_not_have(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        load(DataRequest(tmp_path, **changes), Options())
