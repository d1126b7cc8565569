"""Packed files that were damaged, 2,000 times: refused in one line, or still the model they were.

Damage is random, from a seed: bits, runs of bytes, ends cut off, bytes put in, blocks written twice or swapped, header
entries changed or exchanged under a right length, the checksum. And where somebody signs the damaged content anew, one
line or a model, never anything else.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from fairquant.errors import ArtifactError
from fairquant.export.packed import Packed, read_packed
from fairquant.export.packing import container
from tests.export.quantized_models import packed_bytes

FILES = ("per_channel", "asymmetric_param", "books_of_channels", "static")
EACH = 500
Random = np.random.Generator


def _place(data: bytes, random: Random) -> int:
    """Return a position: as often in the header, which is short, as in all of the file."""
    header = 8 + int.from_bytes(data[:8], "little")
    return int(random.integers(0, header if random.random() < 0.5 else len(data)))


def flip(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.integers(1, 4)):
        changed[_place(data, random)] ^= 1 << random.integers(0, 8)
    return bytes(changed)


def overwrite(data: bytes, random: Random) -> bytes:
    place, number = _place(data, random), int(random.integers(1, 100))
    fill = random.bytes(number) if random.random() < 0.5 else bytes([random.integers(0, 256)]) * number
    return data[:place] + fill[: len(data) - place] + data[place + number :]


def truncate(data: bytes, random: Random) -> bytes:
    return data[: _place(data, random)]


def insert(data: bytes, random: Random) -> bytes:
    place = _place(data, random)
    return data[:place] + random.bytes(int(random.integers(1, 20))) + data[place:]


def duplicate(data: bytes, random: Random) -> bytes:
    place, number = _place(data, random), int(random.integers(1, 5000))
    return data[: place + number] + data[place:]


def exchange(data: bytes, random: Random) -> bytes:
    number = int(random.integers(1, 200))
    first, second = sorted(random.integers(8, len(data) - number, 2).tolist())
    second = max(second, first + number)
    blocks = data[:first], data[second : second + number], data[first + number : second], data[first : first + number]
    return b"".join((*blocks, data[second + number :]))


def _with_header(data: bytes, change: Callable[[dict], None], spaces: int = 0) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode() + b" " * spaces
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def header_entry(data: bytes, random: Random) -> bytes:
    """Change one value of the header, or only the spaces in it."""

    def change(header: dict) -> None:
        names = [name for name in header if name != "__metadata__"]
        name = names[random.integers(0, len(names))]
        values = ([], [0], [2**62], 2**80, -1, None, "F32", "U8", "I64", True, 1.5, {}, [[1]], "\ud800")
        value = values[random.integers(0, len(values))]
        where = int(random.integers(0, 6))
        if where < 3:
            header[name][("dtype", "shape", "data_offsets")[where]] = value
        elif where == 3:
            header[name] = value
        elif where == 4:
            header["__metadata__"][("fairquant", "packed", "sha256")[random.integers(0, 3)]] = value

    return _with_header(data, change, int(random.integers(0, 9)))


def swap_tensors(data: bytes, random: Random) -> bytes:
    def change(header: dict) -> None:
        names = [name for name in header if name != "__metadata__"]
        first, second = random.choice(names, 2, replace=False).tolist()
        header[first], header[second] = header[second], header[first]

    return _with_header(data, change)


def checksum(data: bytes, random: Random) -> bytes:
    def change(header: dict) -> None:
        texts = header["__metadata__"]
        digits = list(texts["sha256"])
        digits[random.integers(0, 64)] = "0123456789abcdefABC \n"[random.integers(0, 21)]
        texts["sha256"] = "".join(digits)

    return _with_header(data, change)


DAMAGE = (flip, overwrite, truncate, insert, duplicate, exchange, header_entry, swap_tensors, checksum)


@cache
def original(kind: str, folder: Path) -> Packed:
    (folder / "right").write_bytes(packed_bytes(kind))
    return read_packed(folder / "right")


def same(one: Packed, other: Packed) -> bool:
    first, second = one.model.state_dict(), other.model.state_dict()
    return (
        (one.metadata, one.header) == (other.metadata, other.header)
        and list(first) == list(second)
        and all(torch.equal(first[name], second[name]) for name in first)
    )


def attempt(path: Path, data: bytes) -> Packed | None:
    """Return what is read, or None where it is refused as it should be."""
    path.write_bytes(data)
    try:
        return read_packed(path)
    except ArtifactError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error) and len(str(error)) < 1000
        return None


@pytest.mark.parametrize("kind", FILES)
def test_damaged_files(kind, tmp_path):
    right, data = original(kind, tmp_path), packed_bytes(kind)
    random = np.random.default_rng([FILES.index(kind), 2026])
    refused = dict.fromkeys((damage.__name__ for damage in DAMAGE), 0)
    for number in range(EACH):
        damage = DAMAGE[number % len(DAMAGE)]
        found = attempt(tmp_path / "p", damage(data, random))
        assert found is None or same(found, right), (number, damage.__name__)
        refused[damage.__name__] += found is None
    assert min(refused.values()) > 0 and sum(refused.values()) > 0.9 * EACH, refused


def signed_anew(path: Path, data: bytes) -> bytes | None:
    """Return ``data`` with the checksum of its content; None where it has none."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = container.parse_object(data[8 : 8 + length].decode())
        texts = container._texts(header.pop("__metadata__", None))
        arrays = container._arrays(header, data, 8 + length)
        texts.pop("sha256")
        container.write(path, texts, arrays)
    except (ArtifactError, UnicodeError):
        return None
    return path.read_bytes()


@pytest.mark.parametrize("kind", FILES)
def test_damage_that_was_signed(kind, tmp_path):
    """The checksum is right: all that is left are the checks of the content."""
    data = packed_bytes(kind)
    random = np.random.default_rng([FILES.index(kind), 7])
    tried = read = 0
    while tried < 40:
        changed = signed_anew(tmp_path / "s", DAMAGE[random.integers(0, len(DAMAGE) - 1)](data, random))
        if changed is not None and changed != data:
            tried += 1
            read += attempt(tmp_path / "p", changed) is not None
    assert 0 < read < tried
