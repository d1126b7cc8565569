"""The width map: as long as the cost model says, and read again by a reader that takes one unit after the other."""

from __future__ import annotations

import numpy as np
import pytest

from fairquant.allocate.bitmap import BitMap
from fairquant.cost.size import size_report
from fairquant.errors import ArtifactError
from fairquant.export.packing.width_map import WIDTHS, decode, encode
from tests.export.second_reader import width_map

MIXES = [(4,), (32,), (0,), (2, 8), (2, 4, 8), (0, 1, 32), (0, 1, 2, 3, 4, 5, 6, 8), WIDTHS]


def drawn(widths: tuple[int, ...], count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    share = random.dirichlet(np.ones(len(widths)))
    return random.choice(np.array(widths, np.uint8), count, p=share)


@pytest.mark.parametrize("widths", MIXES, ids=str)
def test_it_is_read_again_and_costs_what_was_counted(widths):
    for count in (1, 2, 7, 8, 9, 1000):
        units = drawn(widths, count, seed=count)
        stream = encode(units)
        assert stream.dtype == np.uint8
        assert np.array_equal(decode(stream, count), units)
        assert width_map(stream, count) == units.tolist()
        assert len(stream) == size_report(BitMap("per_channel", {"a": units}), {"a": (count, 1)}, rest=0).width_map


def test_by_hand():
    """8 has the word 0, 2 has 10, 4 has 11: the root's bits are 1,0,0,1,0,0, those of the node below it 0,1."""
    assert encode(np.uint8([2, 8, 8, 4, 8, 8])).tolist() == [8, 1, 2, 2, 4, 2, 0b10_001001]


def test_one_width_takes_its_entry_only():
    assert encode(np.full(10_000, 4, np.uint8)).tolist() == [4, 0]
    assert np.array_equal(decode(np.uint8([4, 0]), 10_000), np.full(10_000, 4))


def test_skewed_frequencies_make_long_words():
    units = np.repeat(np.array(WIDTHS, np.uint8), [2**n for n in range(18)])
    stream = encode(np.random.default_rng(0).permutation(units))
    assert stream[1] == 1 and stream[2 * 17 + 1] == 17
    assert np.array_equal(np.sort(decode(stream, len(units))), np.sort(units))


class TestRefused:
    def line(self, stream: list[int], count: int = 6) -> str:
        with pytest.raises(ArtifactError) as caught:
            decode(np.array(stream, np.uint8), count)
        return str(caught.value)

    def test_a_width_that_does_not_exist(self):
        assert (
            self.line([17, 0])
            == "got a width map with the entry [17, 0]; allowed: widths 0 to 16 and 32, lengths below 18"
        )
        assert self.line([8, 1, 2, 18, 4, 2]).startswith("got a width map with the entry [2, 18]")

    def test_a_table_that_ends_early(self):
        assert self.line([]).startswith("got a width map with the entry []")
        assert self.line([8, 1, 2]).startswith("got a width map with the entry [2]")

    @pytest.mark.parametrize("table", [[2, 2, 8, 1, 4, 2], [8, 1, 4, 2, 2, 2], [8, 1, 8, 1], [8, 2, 2, 2, 4, 1, 3, 1]])
    def test_a_table_that_is_no_code_in_order(self, table):
        assert self.line([*table, 137]).endswith("; allowed: a complete prefix code, in order")

    def test_too_few_units(self):
        assert self.line([8, 1, 2, 2, 4, 2]) == (
            "got a width map that ends early; allowed: one width for each unit of the model"
        )
        assert self.line([8, 1, 2, 2, 4, 2, 0b110001], 9).startswith("got a width map that ends early")

    def test_too_many(self):
        wanted = "got a width map of more than 6 units; allowed: one width for each unit of the model"
        assert self.line([8, 1, 2, 2, 4, 2, 137, 0]) == wanted
        assert self.line([4, 0, 0]) == wanted
        assert self.line([2, 1, 8, 1, 0b1000001]) == wanted
