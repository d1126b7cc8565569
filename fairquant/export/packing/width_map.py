"""The widths of all units of a model, entropy-coded: a Huffman code laid out as a wavelet tree.

A Huffman code (Huffman 1952, "A method for the construction of minimum-redundancy codes", Proc. IRE 40) gives each
width a code word, and a binary tree whose leaves are the widths. Written unit by unit, code words would have to be read
unit by unit. Here each inner node of the tree holds one bit for each unit below it, in the order of the units: the next
bit of its code word (a wavelet tree of Huffman's shape; Grossi, Gupta & Vitter 2003, "High-order entropy-compressed
text indexes", SODA). The bits are the same ones in another order, and a node is read, or written, in one vectorised
step.

A stream of bytes holds

- the table: two bytes, width and length of its code word, for each width in order of (length, width). It ends where
  Σ 2^−length reaches 1; a lone width has length 0. Code words are canonical: counted upwards in the order of the table,
  with zeros appended where lengths grow;
- the bits of the nodes, a node before its children and the child of bit 0 before that of bit 1, without gaps; the
  lowest bit of a byte first, zeros at the end.

This is to the byte what ``fairquant.cost.size`` counts for the width map.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from fairquant.cost.size import TABLE_BYTES, huffman_lengths
from fairquant.errors import ArtifactError

Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Tree = int | tuple["Tree", "Tree"]
"""A width, or what follows bit 0 and bit 1."""

WIDTHS = (*range(17), 32)


def encode(units: Bytes) -> Bytes:
    """Return the stream of the widths of ``units`` (n ≥ 1,).

    >>> table, bits = np.split(encode(np.uint8([2, 8, 8, 4, 8, 8])), [6])
    >>> table.tolist(), [f"{byte:08b}" for byte in bits.tolist()]
    ([8, 1, 2, 2, 4, 2], ['10001001'])
    """
    counts = np.bincount(units)
    lengths = huffman_lengths({int(width): int(counts[width]) for width in np.flatnonzero(counts)})
    table = sorted(lengths.items(), key=lambda entry: (entry[1], entry[0]))
    nodes: list[Bools] = []
    _write(_tree(table), units, nodes)
    bits = np.packbits(np.concatenate(nodes), bitorder="little") if nodes else np.empty(0, np.uint8)
    return np.concatenate([np.array(table, np.uint8).reshape(-1), bits])


def decode(stream: Bytes, count: int) -> Bytes:
    """Return the widths of ``count`` units; ``ArtifactError`` for a stream that is not one of so many."""
    table = _read_table(stream)
    bits = np.unpackbits(stream[TABLE_BYTES * len(table) :], bitorder="little").view(np.bool_)
    reader = _Reader(bits)
    units = reader.read(_tree(table), count)
    if len(bits) - reader.place >= 8 or bits[reader.place :].any():
        raise ArtifactError(
            f"got a width map of more than {count} units; allowed: one width for each unit of the model"
        )
    return units


def _read_table(stream: Bytes) -> list[tuple[int, int]]:
    table: list[tuple[int, int]] = []
    total = Fraction(0)
    while total < 1:
        entry = stream[TABLE_BYTES * len(table) : TABLE_BYTES * (len(table) + 1)].tolist()
        if len(entry) < TABLE_BYTES or entry[0] not in WIDTHS or entry[1] >= len(WIDTHS):
            raise ArtifactError(
                f"got a width map with the entry {entry}; allowed: widths 0 to 16 and 32, lengths below 18"
            )
        table.append((entry[0], entry[1]))
        total += Fraction(1, 1 << entry[1])
    ordered = sorted(table, key=lambda entry: (entry[1], entry[0]))
    if total != 1 or table != ordered or len({width for width, _ in table}) < len(table):
        raise ArtifactError(f"got a width map with the table {table}; allowed: a complete prefix code, in order")
    return table


def _tree(table: list[tuple[int, int]]) -> Tree:
    """Return the tree of the canonical code with these (width, length), in order.

    >>> _tree([(8, 1), (2, 2), (4, 2)])
    (8, (2, 4))
    """
    words: dict[int, str] = {}
    code = before = 0
    for width, length in table:
        code <<= length - before
        words[width] = f"{code:0{length}b}" if length else ""
        code, before = code + 1, length
    return _grown(words, 0)


def _grown(words: Mapping[int, str], depth: int) -> Tree:
    if len(words) == 1:
        return next(iter(words))
    sides = ({width: word for width, word in words.items() if word[depth] == bit} for bit in "01")
    lower, upper = (_grown(side, depth + 1) for side in sides)
    return lower, upper


def _leaves(tree: Tree) -> list[int]:
    return [tree] if isinstance(tree, int) else [*_leaves(tree[0]), *_leaves(tree[1])]


def _write(tree: Tree, units: Bytes, nodes: list[Bools]) -> None:
    """Append the bits of ``tree``, which ``units`` go through, to ``nodes``."""
    if isinstance(tree, int):
        return
    upper = np.zeros(max(WIDTHS) + 1, np.bool_)
    upper[_leaves(tree[1])] = True
    bits = upper[units]
    nodes.append(bits)
    for side, chosen in zip(tree, (~bits, bits), strict=True):
        if not isinstance(side, int):
            _write(side, units[chosen], nodes)


class _Reader:
    """Walks through the bits of the nodes."""

    def __init__(self, bits: Bools) -> None:
        self.bits, self.place = bits, 0

    def read(self, tree: Tree, count: int) -> Bytes:
        """Return the widths of the ``count`` units that go through ``tree``."""
        if isinstance(tree, int):
            return np.full(count, tree, np.uint8)
        bits = self.bits[self.place : self.place + count]
        if len(bits) < count:
            raise ArtifactError("got a width map that ends early; allowed: one width for each unit of the model")
        self.place += count
        upper = int(np.count_nonzero(bits))
        lower, higher = self._side(tree[0], count - upper), self._side(tree[1], upper)
        if isinstance(lower, int) and isinstance(higher, int):
            return np.array([lower, higher], np.uint8)[bits.view(np.uint8)]
        units = np.empty(count, np.uint8)
        units[~bits], units[bits] = lower, higher
        return units

    def _side(self, tree: Tree, count: int) -> int | Bytes:
        return tree if isinstance(tree, int) else self.read(tree, count)
