"""Whole numbers of b bits, 1 ≤ b ≤ 16, one behind the other without a gap.

Up to 8 bits, number i takes the bits i·b … i·b + b − 1 of the stream, lowest first; bit k of a stream is bit k mod 8
of byte ⌊k/8⌋. Above 8 bits all low bytes come first, one for each number, and a stream of the upper b − 8 bits behind
them. Either way n numbers take ⌈n·b/8⌉ bytes; what is left of the last byte is 0.

Eight numbers are b whole bytes: the lowest of a 64-bit word in which eight bytes are pushed together, neighbours first,
then pairs, then halves. That takes a few operations on words, whatever the width.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fairquant.errors import ArtifactError

Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

WIDEST = 16
_BYTE = 8
_WORD = np.dtype("<u8")
_BLOCK = 1 << 14
"""Words at a time: 128 KiB, which stay in the cache of a core."""


def stream_bytes(count: int, width: int) -> int:
    """Return how many bytes ``count`` numbers of ``width`` bits take.

    >>> stream_bytes(3, 4), stream_bytes(3, 11)
    (2, 5)
    """
    return -(-count * width // _BYTE)


def pack(codes: Codes, width: int) -> Bytes:
    """Return the stream of ``codes`` (n,), each below 2^``width``; ``width`` from 1 to 16.

    >>> [f"{byte:08b}" for byte in pack(np.uint8([1, 2, 3]), 3).tolist()]
    ['11010001', '00000000']
    >>> pack(np.uint16([0x123, 0x456]), 12).tolist() == [0x23, 0x56, 0x41]
    True
    """
    if width > _BYTE:
        low, high = codes.astype(np.uint8), (codes >> _BYTE).astype(np.uint8)
        return np.concatenate([low, pack(high, width - _BYTE)])
    codes = codes.astype(np.uint8, copy=False)
    if width == _BYTE:
        return codes.copy()
    if width == 1:
        return np.packbits(codes, bitorder="little")
    words = -(-len(codes) // _BYTE)
    out = np.empty((words, width), np.uint8)
    for start in range(0, words, _BLOCK):
        word = _words_of(codes[_BYTE * start : _BYTE * (start + _BLOCK)])
        for mask, used, gap in _joints(width):
            upper = word >> gap
            upper &= mask << used
            word &= mask
            word |= upper
        _copy_bytes(word.view(np.uint8).reshape(-1, _BYTE), out[start : start + _BLOCK], width)
    return out.reshape(-1)[: stream_bytes(len(codes), width)]


def unpack(stream: Bytes, count: int, width: int) -> Codes:
    """Return the ``count`` numbers of ``width`` bits in ``stream``: uint8 (n,), uint16 above 8 bits.

    Raises ``ArtifactError`` for a stream of another length, and one that holds more than those numbers.

    >>> unpack(pack(np.uint16([5, 0, 1023]), 10), 3, 10).tolist()
    [5, 0, 1023]
    """
    wanted = stream_bytes(count, width)
    if len(stream) != wanted:
        raise ArtifactError(f"got {len(stream)} bytes of {width}-bit codes; allowed: {wanted} for {count} codes")
    if width > _BYTE:
        result = stream[:count].astype(np.uint16)
        upper = unpack(stream[count:], count, width - _BYTE).astype(np.uint16)
        result |= upper << _BYTE
        return result
    spare = _BYTE * wanted - count * width
    if spare and stream[-1] >> (_BYTE - spare):
        raise ArtifactError(f"got {width}-bit codes with bits behind the last one; allowed: zeros")
    if width == _BYTE:
        return stream.copy()
    if width == 1:
        return np.unpackbits(stream, count=count, bitorder="little")
    return _spread(stream, count, width)


def _spread(stream: Bytes, count: int, width: int) -> Bytes:
    """Undo what ``pack`` does up to 7 bits."""
    words = -(-count // _BYTE)
    whole = len(stream) // width
    rows = stream[: whole * width].reshape(whole, width)
    out = np.zeros(words, _WORD)
    for start in range(0, words, _BLOCK):
        word = out[start : start + _BLOCK]
        bytes_of = word.view(np.uint8).reshape(-1, _BYTE)
        _copy_bytes(rows[start : start + _BLOCK], bytes_of[: max(0, whole - start)], width)
        if start + _BLOCK >= words and whole < words:
            bytes_of[-1, : len(stream) - whole * width] = stream[whole * width :]
        for mask, used, gap in reversed(tuple(_joints(width))):
            upper = word & (mask << used)
            upper <<= gap
            word &= mask
            word |= upper
    return out.view(np.uint8)[:count]


def _words_of(codes: Bytes) -> npt.NDArray[np.uint64]:
    """Return ``codes`` as words of eight, zeros behind the last; a copy."""
    padded = np.zeros(-(-len(codes) // _BYTE) * _BYTE, np.uint8)
    padded[: len(codes)] = codes
    return padded.view(_WORD)


def _joints(width: int) -> Iterator[tuple[np.uint64, np.uint64, np.uint64]]:
    """Yield for each of three rounds the lower half's bits in all lanes, how many they are, and the gap to the upper.

    >>> [(hex(mask), int(used), int(gap)) for mask, used, gap in _joints(4)]
    [('0xf000f000f000f', 4, 4), ('0xff000000ff', 8, 8), ('0xffff', 16, 16)]
    """
    for half in (8, 16, 32):
        used = width * half // _BYTE
        mask = sum(((1 << used) - 1) << place for place in range(0, 64, 2 * half))
        yield np.uint64(mask), np.uint64(used), np.uint64(half - used)


def _copy_bytes(source: Bytes, target: Bytes, width: int) -> None:
    """Copy the first ``width`` columns, each in one go: rows of a few bytes are slow."""
    for column in range(width):
        target[:, column] = source[:, column]
