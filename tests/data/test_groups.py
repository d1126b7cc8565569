import pytest

from fairquant.data.groups import group_name, order_names, small_group_problem, small_groups
from fairquant.errors import DataError


def test_intersections_are_joined_and_ordered_by_column():
    members = [("male", "<60"), ("female", ">=60"), ("female", "<60"), ("male", "unknown"), ("male", "<60")]
    names = order_names(members, ("sex", "age"), {"age": ("unknown", "<60", ">=60")})
    assert names == ("female × <60", "female × >=60", "male × unknown", "male × <60")
    assert group_name(["female", "<60"]) == "female × <60"


def test_natural_order_without_a_known_one():
    assert order_names([("10",), ("9",)], ("n",), {}) == ("9", "10")


def test_two_combinations_with_one_name_are_refused():
    with pytest.raises(DataError, match="two combinations of .'p', 'q'.* are both named 'a × b × c'"):
        order_names([("a × b", "c"), ("a", "b × c")], ("p", "q"), {})


def test_small_groups_in_order_of_size():
    assert small_groups(list("aaabbcdddd"), 4) == {"c": 1, "b": 2, "a": 3}
    assert list(small_groups(list("aaabbcdddd"), 4)) == ["c", "b", "a"]


def test_the_way_out_of_a_small_group():
    text = small_group_problem("x", 3, 5).message
    assert text == (
        "the group 'x' has 3 samples; allowed: at least data.min_group_size 5, or data.small_groups: merge | drop"
    )
    assert small_group_problem("other", 3, 5).message.endswith("or data.small_groups: drop")
