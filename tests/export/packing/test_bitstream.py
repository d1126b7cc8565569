"""Packed numbers, beside one big whole number made of them, and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fairquant.errors import ArtifactError
from fairquant.export.packing import bitstream
from fairquant.export.packing.bitstream import pack, stream_bytes, unpack

WIDTHS = range(1, 17)


def drawn(count: int, width: int) -> np.ndarray:
    random = np.random.default_rng([count, width])
    return random.integers(0, 2**width, count).astype(np.uint8 if width <= 8 else np.uint16)


def by_the_book(codes: np.ndarray, width: int) -> bytes:
    """Σ code_i · 2^(i·b) in little-endian order; above 8 bits low bytes, then Σ of what is above them."""
    if width > 8:
        return bytes(int(code) & 255 for code in codes) + by_the_book(codes >> 8, width - 8)
    whole = sum(int(code) << (number * width) for number, code in enumerate(codes))
    return whole.to_bytes(-(-len(codes) * width // 8), "little")


@pytest.mark.parametrize("width", WIDTHS)
def test_streams_are_what_the_format_says(width):
    for count in (*range(1, 26), 1001):
        codes = drawn(count, width)
        stream = pack(codes, width)
        assert stream.dtype == np.uint8 and stream.tobytes() == by_the_book(codes, width)
        assert len(stream) == stream_bytes(count, width) == -(-count * width // 8)
        back = unpack(stream, count, width)
        assert back.dtype == codes.dtype and np.array_equal(back, codes)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("beyond", [-9, -8, -1, 0, 1, 8, 9])
def test_blocks_of_words_join_without_a_seam(width, beyond, monkeypatch):
    monkeypatch.setattr(bitstream, "_BLOCK", 4)
    for blocks in (1, 2, 5):
        codes = drawn(8 * 4 * blocks + beyond, width)
        assert pack(codes, width).tobytes() == by_the_book(codes, width)
        assert np.array_equal(unpack(pack(codes, width), len(codes), width), codes)


@pytest.mark.parametrize("width", WIDTHS)
def test_ends_of_the_range(width):
    codes = np.tile(np.array([0, 2**width - 1, 1], np.uint16), 300_000)
    assert np.array_equal(unpack(pack(codes, width), len(codes), width), codes)


def test_wide_arrays_of_narrow_codes():
    assert (
        pack(np.array([1, 2, 3], np.uint16), 4).tolist() == pack(np.array([1, 2, 3], np.uint8), 4).tolist() == [33, 3]
    )


def test_read_only_and_unaligned_streams():
    codes = drawn(1003, 5)
    data = b"x" + pack(codes, 5).tobytes()
    assert np.array_equal(unpack(np.frombuffer(data, np.uint8, offset=1), 1003, 5), codes)


@pytest.mark.parametrize(("width", "count"), [(3, 5), (8, 4), (11, 7), (1, 9)])
def test_another_length(width, count):
    stream = pack(drawn(count, width), width)
    for wrong in (stream[:-1], np.append(stream, np.uint8(0))):
        with pytest.raises(ArtifactError, match=rf"{width}-bit codes; allowed: {len(stream)} for {count} codes"):
            unpack(wrong, count, width)


@pytest.mark.parametrize(("width", "count", "bit"), [(3, 5, 7), (1, 9, 1), (11, 7, 7), (7, 9, 7)])
def test_bits_behind_the_last_number(width, count, bit):
    stream = pack(drawn(count, width), width)
    stream[-1] |= 1 << bit
    with pytest.raises(ArtifactError, match="with bits behind the last one; allowed: zeros"):
        unpack(stream, count, width)
