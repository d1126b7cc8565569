"""The container: what the safetensors library makes of it, its checksum by hand, and every way to break it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from fairquant.errors import ArtifactError
from fairquant.export.packing import container

TEXTS = {"fairquant": '{"a": "é"}', "packed": "{}"}
ARRAYS = {
    "flags": np.array([True, False, True]),
    "codes": np.arange(5, dtype=np.uint8),
    "steps": np.array([0.5, -np.inf, 3e38], np.float32),
    "counts": np.array([2**40 + 1], np.int64),
    "zeros": np.array([-7, 9], np.int32),
    "exact": np.array([0.1], np.float64),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    container.write(tmp_path / "c.safetensors", TEXTS, ARRAYS)
    return tmp_path / "c.safetensors"


def test_what_is_written_is_read(file):
    texts, arrays = container.read(file)
    assert texts == TEXTS and set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and arrays[name].tobytes() == array.tobytes()
        assert arrays[name].flags.aligned and not arrays[name].flags.writeable


def test_the_library_reads_the_same(file):
    with safe_open(str(file), framework="np") as found:
        assert {key: text for key, text in found.metadata().items() if key != "sha256"} == TEXTS
        assert set(found.keys()) == set(ARRAYS)
        for name, array in ARRAYS.items():
            assert found.get_tensor(name).dtype == array.dtype and np.array_equal(found.get_tensor(name), array)


def test_the_checksum_by_hand(file):
    wanted = hashlib.sha256()
    for name in ("fairquant", "packed"):
        wanted.update(f"text {name} {len(TEXTS[name].encode())}\n".encode() + TEXTS[name].encode())
    for name, kind in zip(sorted(ARRAYS), ("U8", "I64", "F64", "BOOL", "F32", "I32"), strict=True):
        wanted.update(f"tensor {name} {kind} {len(ARRAYS[name])}\n".encode() + ARRAYS[name].tobytes())
    assert container.checksum(TEXTS, ARRAYS) == wanted.hexdigest()
    with safe_open(str(file), framework="np") as found:
        assert found.metadata()["sha256"] == wanted.hexdigest()


def test_bytes_depend_on_the_content_alone(file, tmp_path):
    container.write(tmp_path / "other", dict(reversed(TEXTS.items())), dict(reversed(ARRAYS.items())))
    assert (tmp_path / "other").read_bytes() == file.read_bytes()
    strided = {**ARRAYS, "codes": np.arange(10, dtype=np.uint8)[::2] // 2}
    container.write(tmp_path / "other", TEXTS, strided)
    assert (tmp_path / "other").read_bytes() == file.read_bytes()


def header_of(data: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header: object, rest: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


class TestRefused:
    def line(self, path: Path, data: bytes) -> str:
        path.write_bytes(data)
        with pytest.raises(ArtifactError) as caught:
            container.read(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def edited(self, file: Path, name: str, **changes: object) -> str:
        header, rest = header_of(file.read_bytes())
        header[name] |= changes
        return self.line(file, with_header(header, rest))

    @pytest.mark.parametrize("data", [b"", b"1234567", b"\x01" + bytes(7), b"\xff" * 64, b"PK\x03\x04" + bytes(60)])
    def test_no_header(self, file, data):
        assert self.line(file, data) == f"got {len(data)} bytes that begin no header; allowed: a packed model"

    def test_a_file_that_cannot_be_opened(self, tmp_path):
        with pytest.raises(ArtifactError, match=r"none: not found; run the stage that writes it \(dvc repro\)"):
            container.read(tmp_path / "none")
        with pytest.raises(ArtifactError, match=r"not readable \(Is a directory\); allowed: a file"):
            container.read(tmp_path)

    @pytest.mark.parametrize("text", [b"{", b"[]x", b"{'a': 1}", b'{"a": NaN}', b'{"a": 1' + b"0" * 5000 + b"}",
                                      b"[" * 100_000, b'{"a": 1, "a": 1}'], ids=range(7))  # fmt: skip
    def test_no_json(self, file, text):
        assert self.line(file, with_header(text, b"")).endswith("; allowed: JSON")

    def test_json_of_another_kind(self, file):
        assert self.line(file, with_header(b"[1]", b"")) == "got [1]; allowed: a JSON object"
        assert self.line(file, with_header(b"\xff", b"")) == "got a header that is not UTF-8; allowed: a packed model"

    def test_a_foreign_safetensors_file(self, file):
        _, rest = header_of(file.read_bytes())
        for texts in (None, {"format": "pt"}, {"sha256": 3}, "sha256", ["sha256"]):
            line = self.line(file, with_header({"__metadata__": texts}, rest))
            assert line == "got a safetensors file without a sha256 among its texts; allowed: a packed model"

    @pytest.mark.parametrize(
        "changes",
        [{"dtype": "BF16"}, {"dtype": ["F32"]}, {"shape": []}, {"shape": [5, 1]}, {"shape": [True]}, {"shape": [-5]},
         {"shape": 5}, {"shape": [5.0]}, {"shape": [0]}, {"data_offsets": [0]}, {"data_offsets": "ab"}, {"more": 1}],
        ids=str,
    )  # fmt: skip
    def test_a_tensor_that_is_none(self, file, changes):
        line = self.edited(file, "codes", **changes)
        assert line.startswith("got the tensor 'codes' with {") and len(line) < 200
        assert line.endswith("; allowed: one dimension, BOOL | F32 | F64 | I32 | I64 | U8")

    @pytest.mark.parametrize(
        "changes",
        [{"shape": [6]}, {"shape": [2**62]}, {"data_offsets": [0, 5]}, {"data_offsets": [36, 2**63]},
         {"data_offsets": [41, 36]}, {"dtype": "F32"}],
        ids=str,
    )  # fmt: skip
    def test_sizes_that_do_not_fit(self, file, changes):
        assert "allowed: from " in self.edited(file, "codes", **changes)

    def test_bytes_too_many_or_too_few(self, file):
        data = file.read_bytes()
        _, rest = header_of(data)
        assert (
            self.line(file, data + b"1")
            == f"got {len(rest) + 1} bytes of tensors; allowed: {len(rest)}, as the header says"
        )
        assert f"within {len(rest) - 1} bytes" in self.line(file, data[:-1])

    def test_a_gap(self, file):
        header, rest = header_of(file.read_bytes())
        last = max((name for name in header if name != "__metadata__"), key=lambda n: header[n]["data_offsets"])
        header[last]["data_offsets"] = [offset + 4 for offset in header[last]["data_offsets"]]
        assert "; allowed: from " in self.line(file, with_header(header, rest + b"1234"))

    def test_truth_values_of_another_kind(self, file):
        header, rest = header_of(file.read_bytes())
        start = header["flags"]["data_offsets"][0]
        broken = rest[:start] + b"\x02" + rest[start + 1 :]
        wanted = "got the tensor 'flags' with bytes above 1; allowed: truth values 0 and 1"
        assert self.line(file, with_header(header, broken)) == wanted

    def test_other_content(self, file):
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        assert self.line(file, bytes(data)).startswith("got content of sha256 ")
        header, rest = header_of(file.read_bytes())
        header["__metadata__"]["packed"] = "{ }"
        assert self.line(file, with_header(header, rest)).endswith(", which it was written with")

    @pytest.mark.parametrize("place", ["text", "name", "tensor"])
    def test_half_a_character(self, file, place):
        header, rest = header_of(file.read_bytes())
        if place == "tensor":
            header["\ud800"] = header.pop("codes")
        else:
            header["__metadata__"] |= {"packed": "\ud800"} if place == "text" else {"\udc00": ""}
        assert self.line(file, with_header(header, rest)) == "got names that are not Unicode; allowed: a packed model"
