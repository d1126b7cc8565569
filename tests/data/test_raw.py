import pytest

from fairquant.data.raw import choose, choose_groups, natural_order
from fairquant.errors import DataError


def test_natural_order_counts_and_drops_repeats_and_blanks():
    assert natural_order(["10", "9", " ", "9", "", "1"]) == ("1", "9", "10")
    assert natural_order(["more than 70", "10-19", "3-9", "0-2"]) == ("0-2", "3-9", "10-19", "more than 70")
    assert natural_order(["01", "1", "b2", "b10"]) == ("01", "1", "b2", "b10")


def test_choose_takes_the_default_and_names_what_is_allowed():
    assert choose("data.label", None, ["age", "sex"], "sex") == "sex"
    assert choose("data.label", "age", ["age", "sex"], "sex") == "age"
    with pytest.raises(DataError, match=r"^data.label: got 'dx'; allowed: age \| sex$"):
        choose("data.label", "dx", ["age", "sex"], "sex")


@pytest.mark.parametrize("value", [("sex", "sex"), ()])
def test_group_columns_are_named_once(value):
    with pytest.raises(DataError, match="data.group: got .*allowed: one or several different columns of age"):
        choose_groups(value, ["age", "sex"], ["sex"])


def test_numbers_of_any_length_are_ordered():
    values = ["9" * 5000, "10", "1" + "0" * 5000, "007", "9", "0"]
    assert natural_order(values) == ("0", "007", "9", "10", "9" * 5000, "1" + "0" * 5000)
