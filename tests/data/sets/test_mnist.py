import gzip
import hashlib
from dataclasses import replace

import numpy as np
import pytest

from fairquant.config.load import parse_config
from fairquant.data.prepare import prepare
from fairquant.data.raw import DataRequest
from fairquant.data.sets import mnist
from fairquant.data.sets.mnist import LINKS, Options, load
from fairquant.errors import DataError
from tests.data.server import Reply


def write(folder, part, n, *, zipped=True, seed=0):
    """Write a part in the published format and return its arrays."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
    labels = (np.arange(n) % 10).astype(np.uint8)
    folder.mkdir(exist_ok=True)
    for stem, array, magic in (
        (f"{part}-images-idx3-ubyte", images, 2051),
        (f"{part}-labels-idx1-ubyte", labels, 2049),
    ):
        data = np.array([magic, *array.shape], ">i4").tobytes() + array.tobytes()
        path = folder / (stem + (".gz" if zipped else ""))
        path.write_bytes(gzip.compress(data) if zipped else data)
    return images, labels


@pytest.mark.parametrize("zipped", [True, False])
def test_t10k_alone_is_split_by_the_fractions(tmp_path, zipped):
    images, labels = write(tmp_path, "t10k", 50, zipped=zipped)
    raw = load(DataRequest(tmp_path), Options())
    assert [sample.label for sample in raw.samples] == [str(label) for label in labels]
    assert all(np.array_equal(sample.image(), image) for sample, image in zip(raw.samples, images, strict=True))
    assert {sample.split for sample in raw.samples} == {None}


def test_with_train_the_t10k_files_are_the_test(tmp_path):
    write(tmp_path, "t10k", 20)
    write(tmp_path, "train", 40, seed=1)
    raw = load(DataRequest(tmp_path), Options())
    assert [sample.split for sample in raw.samples] == ["train"] * 40 + ["test"] * 20
    assert len({sample.id for sample in raw.samples}) == 60


@pytest.fixture
def mirror(tmp_path, server, monkeypatch):
    """Serve the four files of 40 and 20 digits under the links; return the server."""
    write(tmp_path / "mirror", "train", 40, seed=1)
    write(tmp_path / "mirror", "t10k", 20)
    links = []
    for link in LINKS:
        data = (tmp_path / "mirror" / link.name).read_bytes()
        links.append(replace(link, url=server.serve(link.name, data), md5=hashlib.md5(data).hexdigest()))
    monkeypatch.setattr(mnist, "LINKS", tuple(links))
    return server


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_four_files_are_fetched_once(tmp_path, mirror):
    for _ in range(2):
        raw = load(DataRequest(tmp_path / "raw", download=True), Options())
        assert [sample.split for sample in raw.samples] == ["train"] * 40 + ["test"] * 20
    assert names(tmp_path / "raw") == sorted(link.name for link in LINKS)
    assert [len(found) for found in mirror.requests.values()] == [1, 1, 1, 1]


def test_nothing_is_fetched_where_the_t10k_files_are_or_where_it_is_forbidden(tmp_path, mirror):
    write(tmp_path / "raw", "t10k", 50)
    assert len(load(DataRequest(tmp_path / "raw", download=True), Options()).samples) == 50
    with pytest.raises(
        DataError, match=r"t10k-images-idx3-ubyte.gz not found; expected .* .data.download: true fetches"
    ):
        load(DataRequest(tmp_path / "other", download=False), Options())
    assert not mirror.requests


def test_an_interrupted_download_goes_on_with_what_is_missing(tmp_path, mirror):
    write(tmp_path / "raw", "train", 40, seed=1, zipped=False)
    raw = load(DataRequest(tmp_path / "raw", download=True), Options())
    assert len(raw.samples) == 60
    assert list(mirror.requests) == ["/t10k-images-idx3-ubyte.gz", "/t10k-labels-idx1-ubyte.gz"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(b"x" * 100, cut=50), "the connection ended after 50 of 100 bytes"),
        (Reply(gzip.compress(b"other")), "got the md5 .*; expected"),
        (Reply(status=403), "HTTP 403"),
    ],
)
def test_a_download_that_fails_is_one_line_and_leaves_no_t10k_file(tmp_path, mirror, reply, reason):
    url = mirror.serve("t10k-labels-idx1-ubyte.gz", reply)
    with pytest.raises(DataError, match=reason) as caught:
        load(DataRequest(tmp_path / "raw", download=True), Options())
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"{url}: not fetched (") and f" {tmp_path / 'raw'} " in text
    assert "expected {t10k,train}-images-idx3-ubyte.gz and {t10k,train}-labels-idx1-ubyte.gz as published" in text
    assert "t10k-labels-idx1-ubyte.gz" not in names(tmp_path / "raw")


def test_a_redirect_and_a_retry(tmp_path, mirror):
    body = (tmp_path / "mirror" / "train-images-idx3-ubyte.gz").read_bytes()
    there = mirror.serve("there", Reply(status=503), Reply(body, cut=300), body)
    mirror.serve("train-images-idx3-ubyte.gz", Reply(status=302, headers={"Location": there}))
    assert len(load(DataRequest(tmp_path / "raw", download=True), Options()).samples) == 60


def test_without_a_network(tmp_path, mirror):
    mirror.close()
    with pytest.raises(DataError, match=f"not fetched .Connection refused; 3 attempts.; put it into {tmp_path}/raw by"):
        load(DataRequest(tmp_path / "raw", download=True), Options())
    assert names(tmp_path / "raw") == []


def damage(path, data):
    path.write_bytes(gzip.compress(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: (f / "t10k-images-idx3-ubyte.gz").unlink(),
            "got one of the two t10k files .* expected {t10k,train}",
        ),
        (lambda f: (f / "t10k-images-idx3-ubyte.gz").write_bytes(b"x"), "ubyte.gz: not a readable gzip file"),
        (lambda f: damage(f / "t10k-images-idx3-ubyte.gz", b""), "not an idx file of unsigned bytes in 3 dimensions"),
        (
            lambda f: damage(f / "t10k-labels-idx1-ubyte.gz", b"\0\0\x08\3" + b"\0" * 4),
            "not an idx file .* in 1 dimensi",
        ),
        (
            lambda f: damage(f / "t10k-labels-idx1-ubyte.gz", b"\0\0\x08\1\0\0\0\x14" + b"\0" * 4),
            "got 4 bytes for .*20,",
        ),
        (lambda f: damage(f / "t10k-labels-idx1-ubyte.gz", b"\0\0\x08\1\0\0\0\2ab"), "got 20 images for the 2 labels"),
        (
            lambda f: [path.unlink() for path in f.iterdir()],
            "t10k-images-idx3-ubyte.gz not found; expected {t10k,train}",
        ),
    ],
)
def test_damaged_files_are_one_line(tmp_path, change, message):
    write(tmp_path, "t10k", 20)
    change(tmp_path)
    with pytest.raises(DataError, match=message):
        load(DataRequest(tmp_path), Options())


def test_a_label_that_is_no_digit_is_unknown(tmp_path):
    write(tmp_path, "t10k", 20)
    damage(tmp_path / "t10k-labels-idx1-ubyte.gz", b"\0\0\x08\1\0\0\0\x14" + bytes([11] + list(range(10)) + [0] * 9))
    config = parse_config({"data": {"name": "mnist", "path": str(tmp_path)}})
    with pytest.raises(DataError, match="1 unknown label .t10k row 1 got the label '11'; allowed: 0 | 1"):
        prepare(config, tmp_path / "prepared")


def test_columns_it_does_not_have(tmp_path):
    with pytest.raises(DataError, match="data.split_by: got 'writer'; allowed: null for mnist"):
        load(DataRequest(tmp_path, split_by="writer"), Options())


def test_the_published_files(shared_data, tmp_path):
    data = {"name": "mnist", "path": str(shared_data / "mnist"), "train_subset": 200, "test_subset": 100}
    meta = prepare(parse_config({"data": {**data, "image_size": 28}, "workers": 1}), tmp_path / "prepared")
    assert meta["groups"] == meta["classes"] == list("0123456789")
    assert sum(meta["splits"]["test"].values()) == 100 and sum(meta["splits"]["train"].values()) == 200
