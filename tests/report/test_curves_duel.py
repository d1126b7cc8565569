"""A method against the best of its rivals at the same bytes."""

from __future__ import annotations

import pytest

from fairquant.report.curves_duel import Duel, duel, duel_table
from fairquant.report.curves_summary import Curves
from fairquant.report.curves_tables import markdown
from tests.report.curve_rows import row

RIVALS = ("uniform", "levels_max")


def curves(ours: float, *rivals: tuple[str, float]) -> Curves:
    """One seed at 2 bits; our worst group's interval is ± 2 points."""
    return Curves(
        [row("ours", worst=ours, predicted={"dark": 0.1}), *(row(name, worst=worst) for name, worst in rivals)]
    )


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [(0.75, "above"), (0.729, "above"), (0.728, "within"), (0.7, "within"), (0.672, "within"), (0.671, "below")],
)
def test_the_verdict_is_by_both_intervals(ours, verdict):
    """Half-widths of 0.02 each: √2 · 0.02 = 0.0283."""
    found = duel(curves(ours, ("uniform", 0.7)), "ours", 2.0, RIVALS)
    assert found == Duel("uniform", pytest.approx(ours - 0.7), verdict)


def test_the_rival_is_the_best_of_those_named():
    found = duel(curves(0.75, ("uniform", 0.6), ("levels_max", 0.74), ("uniform_mse", 0.9)), "ours", 2.0, RIVALS)
    assert found == Duel("levels_max", pytest.approx(0.01), "within")


def test_means_are_over_the_seeds_both_have():
    rows = [row("ours", seed=seed, worst=worst) for seed, worst in ((0, 0.7), (1, 0.8))]
    rows += [row("uniform", seed=1, worst=0.78), row("uniform", seed=2, worst=0.1)]
    found = duel(Curves(rows), "ours", 2.0, RIVALS)
    assert found is not None and found.difference == pytest.approx(0.02)


def test_no_rival_no_duel():
    alone = curves(0.7)
    assert duel(alone, "ours", 2.0, RIVALS) is None
    assert duel(alone, "ours", 2.0, ("ours",)) is None
    assert duel(curves(0.7, ("uniform", 0.6)), "ours", 3.0, RIVALS) is None
    assert duel_table(alone, ["ours"], RIVALS) == [("method", "2")]
    assert "against the best" not in markdown({"faces": {False: alone}}, {}, RIVALS)


def test_without_an_interval_nothing_is_claimed():
    rows = [row("ours", worst=0.79, worst_change_low=None, worst_change_high=None), row("uniform", worst=0.1)]
    assert duel(Curves(rows), "ours", 2.0, RIVALS) == Duel("uniform", pytest.approx(0.69), "within")


def test_the_page_has_the_table():
    page = markdown({"faces": {False: curves(0.75, ("uniform", 0.7))}}, {}, RIVALS)
    assert "### Without fine-tuning: worst group against the best of uniform, levels_max" in page
    assert "+5.0 above (uniform)" in page.replace("\\", "")
