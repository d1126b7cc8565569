"""The knapsack against a brute force over all allocations, against one integer program over everything, and by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from fairquant.allocate.knapsack import Infeasible, cheapest, core, minimise, solve
from fairquant.allocate.objective import Objective
from fairquant.errors import UserError


def _random_case(seed):
    """Return losses, costs, limits and an objective: every objective, tight and loose, with ties, zeros and noise."""
    random = np.random.default_rng(seed)
    units, widths, groups, budgets = (int(random.integers(*pair)) for pair in ((3, 7), (2, 5), (1, 5), (1, 4)))
    losses = 10 ** random.normal(size=(groups, units, 1)) * 4.0 ** -np.arange(widths)
    losses = losses * np.exp(random.normal(0, 0.5, (groups, units, widths)))
    match int(random.integers(5)):
        case 1:
            losses = np.round(losses)  # many equal, many zero
        case 2:
            losses = random.random((groups, units, widths))  # wider is not better
        case 3:
            losses[:, random.integers(units)] = 0
            losses[random.integers(groups)] = 0
        case 4:
            losses = np.ones((groups, units, widths)) * random.random((groups, 1, 1))
    if random.random() < 0.3:
        costs = random.integers(1, 50, (budgets, units, 1)) * np.arange(widths).astype(float)
    else:
        costs = np.cumsum(random.random((budgets, units, widths)) * (random.random((budgets, units, widths)) < 0.8), 2)
    least, most = costs[:, :, 0].sum(1), costs[:, :, -1].sum(1)
    share = random.random(budgets) ** 1.5 if random.random() < 0.8 else np.full(budgets, random.choice([0, 1, 1.2]))
    limits = np.maximum(least + share * (most - least), cheapest(costs))
    cap = random.choice([1 / groups, 1, random.uniform(1 / groups, 1)])
    scale = None
    if random.random() < 0.5:
        scale = np.exp(random.normal(size=groups)) * (np.arange(groups) < max(1, int(random.integers(groups + 1))))
    losses = losses * 10.0 ** random.integers(-12, 7)
    return losses, costs, limits, Objective.tail(groups, cap, scale)


def _spent(costs, choice):
    units = np.arange(len(choice))
    return np.array([math.fsum(budget[units, choice]) for budget in costs])


def _brute_force(losses, costs, limits, objective):
    """Return the least objective over all allocations within the limits (exact sums)."""
    _, units, widths = losses.shape
    every = np.array(list(itertools.product(range(widths), repeat=units)))
    within = [bool((_spent(costs, choice) <= limits).all()) for choice in every]
    totals = losses[:, np.arange(units), every[within]].sum(axis=2, dtype=np.float64)
    return objective.value(totals.T).min()


@pytest.mark.parametrize("part", range(5))
def test_the_optimum_of_500_small_problems(part):
    proved = 0
    for seed in range(100 * part, 100 * (part + 1)):
        losses, costs, limits, objective = _random_case(seed)
        solution = minimise(losses, costs, limits, objective)
        optimum = _brute_force(losses, costs, limits, objective)
        assert solution.value <= 1.001 * optimum + 1e-300, seed
        assert solution.bound <= optimum * (1 + 1e-9), seed
        assert (_spent(costs, solution.choice) <= limits).all(), seed
        assert solution.spent.tolist() == _spent(costs, solution.choice).tolist(), seed
        totals = losses[:, np.arange(len(solution.choice)), solution.choice].sum(axis=1)
        np.testing.assert_allclose(solution.totals, totals, rtol=1e-12)
        assert solution.value == pytest.approx(objective.value(totals), rel=1e-12)
        assert solution.gap >= 0
        proved += solution.gap <= 1e-3
    assert proved >= 99  # short by the last bit of a limit, a bound may include a choice just beyond it


def _realistic(units, widths=7, groups=5, seed=0):
    """Return losses (G, U, W) float32 and costs (1, U, W) in bits, like those of the channels of a ResNet."""
    random = np.random.default_rng(seed)
    sizes = random.choice([64, 128, 256, 576, 1152, 2304, 4608], units)
    sensitivity = 10 ** random.normal(-3, 1, units) * sizes / 1000
    losses = np.exp(random.normal(0, 0.5, (groups, units))) * sensitivity
    losses = losses[:, :, None] * 4.0 ** -np.arange(widths) * np.exp(random.normal(0, 0.1, (groups, units, widths)))
    return losses.astype(np.float32), (sizes[:, None] * np.arange(widths)).astype(float)[None]


OBJECTIVES = {
    "mean": Objective.tail(5, 1 / 5),
    "max": Objective.tail(5, 1.0),
    "cvar": Objective.tail(5, 1 / 2.5),
    "shares": Objective.tail(5, 1.0, [1, 2, 0.5, 0, 3]),
}


def _one_program(losses, costs, limits, objective):
    """Return the optimum by one integer program over all choices, whose rows are written out one by one."""
    groups, units, widths = losses.shape
    columns = units * widths
    scaled = objective.scale[:, None] * losses.reshape(groups, -1).astype(float)
    unit = scaled.max()
    rows = np.hstack([scaled / unit, -np.ones((groups, 1)), -np.eye(groups)])
    each = np.hstack([np.kron(np.eye(units), np.ones(widths)), np.zeros((units, 1 + groups))])
    spend = np.hstack([costs.reshape(len(costs), -1), np.zeros((len(costs), 1 + groups))])
    result = milp(
        np.concatenate([np.zeros(columns), [1], np.full(groups, objective.cap)]),
        constraints=[
            LinearConstraint(rows, -np.inf, 0),
            LinearConstraint(each, 1, 1),
            LinearConstraint(spend, -np.inf, limits),
        ],
        integrality=np.concatenate([np.ones(columns), np.zeros(1 + groups)]),
        bounds=Bounds(
            np.concatenate([np.zeros(columns), [-np.inf], np.zeros(groups)]),
            np.concatenate([np.ones(columns), np.full(1 + groups, np.inf)]),
        ),
        options={"mip_rel_gap": 1e-4, "time_limit": 30},
    )
    assert result.status == 0
    return result.fun * unit, result.mip_dual_bound * unit


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_against_one_integer_program(name, share):
    losses, costs = _realistic(60, widths=5)
    limits = share * costs[:, :, -1].sum(axis=1)
    value, bound = _one_program(losses, costs, limits, OBJECTIVES[name])
    solution = minimise(losses, costs, limits, OBJECTIVES[name])
    assert bound * (1 - 1e-4) <= solution.value <= value * 1.001
    assert solution.bound <= value * (1 + 1e-5)
    assert solution.gap <= 1e-3


@pytest.mark.parametrize("name", OBJECTIVES)
def test_thousands_of_units_within_the_gap(name):
    losses, costs = _realistic(3000)
    limits = np.array([3.0 * costs[0, :, 1].sum()])  # three bits per weight
    solution = minimise(losses, costs, limits, OBJECTIVES[name])
    assert solution.gap <= 1e-3
    assert 0 <= limits[0] - solution.spent[0] < 4608 * 6


def test_three_budgets_at_once():
    losses, costs = _realistic(2000)
    random = np.random.default_rng(3)
    costs = np.concatenate([costs, costs * random.choice([49, 196, 784], 2000)[None, :, None], costs / 8e6 + 4e-6])
    most = costs[:, :, -1].sum(axis=1)
    for share in ([0.5, 0.4, 0.6], [0.3, 1.0, 1.0], [1.0, 1.0, 1.0]):
        solution = minimise(losses, costs, share * most, OBJECTIVES["max"])
        assert solution.gap <= 1e-3
        assert (solution.spent <= share * most).all()
        assert (solution.prices[np.array(share) == 1.0] == 0).all()


def test_by_hand_two_groups():
    """Each group needs another unit; with room for one wide unit and a half, minimax serves both in part."""
    losses = np.array([[[9.0, 3.0, 0.0], [0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [8.0, 2.0, 0.0]]])
    costs = np.array([[[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]])
    worst = minimise(losses, costs, [2.0], Objective.tail(2, 1.0))
    assert (worst.choice.tolist(), worst.value) == ([1, 1], 3.0)
    weighted = minimise(losses, costs, [2.0], Objective.tail(2, 1.0, [1.0, 100.0]))
    assert (weighted.choice.tolist(), weighted.value) == ([0, 2], 9.0)
    unequal = minimise(losses, costs, [3.0], Objective.tail(2, 0.5))
    assert (unequal.choice.tolist(), unequal.value) == ([2, 1], 1.0)


def test_prices_and_group_weights_are_the_slope():
    """The objective is nearly convex in a large problem's budget: its slope lies between the prices at both ends."""
    losses, costs = _realistic(1000)
    for name in ("mean", "max", "cvar"):
        limits = np.array([3.0 * costs[0, :, 1].sum()])
        here = minimise(losses, costs, limits, OBJECTIVES[name])
        more = minimise(losses, costs, limits * 1.1, OBJECTIVES[name])
        slope = (here.value - more.value) / (0.1 * limits[0])
        assert 0.98 * more.prices[0] <= slope <= 1.02 * here.prices[0]
        assert here.group_weights @ here.totals == pytest.approx(here.value, rel=0.01)
        assert (here.group_weights <= OBJECTIVES[name].cap * (1 + 1e-12)).all()
        assert here.group_weights.sum() == pytest.approx(1, rel=1e-12)


def test_the_price_of_a_budget_without_room():
    losses = np.array([[[9.0, 4.0], [8.0, 2.0]]])
    costs = np.array([[[1.0, 2.0], [1.0, 3.0]]])
    solution = minimise(losses, costs, [2.0], Objective.tail(1, 1.0))
    assert (solution.choice.tolist(), solution.prices.tolist()) == ([0, 0], [5.0])  # 5 for one bit, 6 for two


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("factor", [1e-9, 1e6])
def test_scaling_the_losses_scales_the_result(name, factor):
    losses, costs = _realistic(40, widths=4)
    losses = losses.astype(np.float64)
    limits = 0.4 * costs[:, :, -1].sum(axis=1)
    one, other = (minimise(scaled, costs, limits, OBJECTIVES[name]) for scaled in (losses, losses * factor))
    assert other.value == pytest.approx(factor * one.value, rel=1e-3)
    assert other.gap <= 1e-3


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_order_of_groups_and_units_does_not_matter(name):
    losses, costs = _realistic(40, widths=4)
    limits = 0.4 * costs[:, :, -1].sum(axis=1)
    random, objective = np.random.default_rng(5), OBJECTIVES[name]
    groups, units = random.permutation(5), random.permutation(40)
    one = minimise(losses, costs, limits, objective)
    turned = Objective(objective.scale[groups], objective.cap)
    other = minimise(losses[groups][:, units], costs[:, units], limits, turned)
    assert other.value == pytest.approx(one.value, rel=1e-3)


def test_a_width_worse_than_another_changes_nothing():
    losses, costs = _realistic(40, widths=4)
    limits = 0.4 * costs[:, :, -1].sum(axis=1)
    wider = np.concatenate([losses, losses[:, :, -1:] * 1.5], axis=2)
    dearer = np.concatenate([costs, costs[:, :, -1:] + 1], axis=2)
    for objective in OBJECTIVES.values():
        one, other = minimise(losses, costs, limits, objective), minimise(wider, dearer, limits, objective)
        assert other.value == pytest.approx(one.value, rel=1e-3)


def test_a_looser_budget_is_never_worse():
    losses, costs = _realistic(40, widths=4)
    for objective in OBJECTIVES.values():
        shares = [0.02, 0.1, 0.2, 0.35, 0.36, 0.6, 1.0]
        values = [minimise(losses, costs, s * costs[:, :, -1].sum(axis=1), objective).value for s in shares]
        assert all(after <= before * 1.001 for before, after in itertools.pairwise(values))


def test_equal_input_gives_equal_output():
    losses, costs = _realistic(400)
    limits = 0.4 * costs[:, :, -1].sum(axis=1)
    one, other = (minimise(losses, costs, limits, OBJECTIVES["cvar"]) for _ in range(2))
    assert one.choice.tobytes() == other.choice.tobytes()
    assert one.bound == other.bound
    assert one.prices.tobytes() == other.prices.tobytes()


def test_float32_losses_give_what_float64_gives():
    losses, costs = _realistic(400)
    limits = 0.4 * costs[:, :, -1].sum(axis=1)
    one, other = (minimise(values, costs, limits, OBJECTIVES["max"]) for values in (losses, losses.astype(np.float64)))
    assert one.choice.tolist() == other.choice.tolist()


@pytest.mark.parametrize("seed", range(30))
def test_nothing_more_fits_without_raising_the_objective(seed):
    losses, costs, limits, objective = _random_case(1000 + seed)
    solution = minimise(losses, costs, limits, objective)
    for unit, width in itertools.product(range(losses.shape[1]), range(losses.shape[2])):
        if width > solution.choice[unit]:
            choice = solution.choice.copy()
            choice[unit] = width
            totals = losses[:, np.arange(len(choice)), choice].sum(axis=1)
            raises = objective.value(totals) > objective.value(solution.totals)
            assert raises or not (_spent(costs, choice) <= limits).all()


def test_units_that_matter_to_nobody_take_what_is_left():
    losses = np.zeros((2, 6, 3))
    losses[:, 0] = [4, 2, 1]
    costs = np.tile(np.array([0.0, 10.0, 20.0]), (1, 6, 1))
    solution = minimise(losses, costs, [75.0], Objective.tail(2, 1.0))
    assert solution.choice[0] == 2
    assert solution.spent.tolist() == [70.0]
    assert (solution.value, solution.bound, solution.gap) == (1.0, 1.0, 0.0)


def test_all_losses_zero():
    costs = np.tile(np.array([0.0, 10.0, 20.0]), (1, 6, 1))
    solution = minimise(np.zeros((2, 6, 3)), costs, [75.0], Objective.tail(2, 1.0))
    assert (solution.value, solution.bound, solution.gap) == (0.0, 0.0, 0.0)
    assert solution.spent.tolist() == [70.0]


@pytest.mark.parametrize("limit, choice", [(2.0, 0), (4.9, 1), (5.0, 2), (99.0, 2)])
def test_one_unit(limit, choice):
    costs = np.array([[[2.0, 3.0, 5.0]]])
    assert minimise(np.array([[[7.0, 3.0, 1.0]]]), costs, [limit], Objective.tail(1, 1.0)).choice.tolist() == [choice]


def test_one_width():
    losses, costs = np.arange(1.0, 9.0).reshape(2, 4, 1), np.ones((1, 4, 1))
    solution = minimise(losses, costs, [4.0], Objective.tail(2, 1.0))
    assert solution.choice.tolist() == [0] * 4
    assert (solution.value, solution.bound) == (26.0, 26.0)


def test_no_units():
    solution = minimise(np.zeros((2, 0, 3)), np.zeros((1, 0, 3)), [4.0], Objective.tail(2, 1.0))
    assert (solution.choice.shape, solution.value, solution.gap, solution.spent.tolist()) == ((0,), 0.0, 0.0, [0.0])


def test_no_budgets():
    losses = np.array([[[2.0, 1.0, 3.0], [0.5, 4.0, 0.5]]])
    solution = minimise(losses, np.zeros((0, 2, 3)), [], Objective.tail(1, 1.0))
    assert (solution.choice.tolist(), solution.value) == ([1, 2], 1.5)


def test_infeasible_carries_the_smallest_feasible():
    losses, costs = _realistic(10)
    costs = np.concatenate([costs, costs + 0.1])
    smallest = cheapest(costs)
    assert smallest.tolist() == [0.0, math.fsum([0.1] * 10)]
    message = "^budget 1: got 0.5; allowed: at least 1.0, the cheapest widths' cost$"
    with pytest.raises(Infeasible, match=message) as caught:
        minimise(losses, costs, [1e9, 0.5], OBJECTIVES["max"])
    assert (caught.value.index, caught.value.limit, caught.value.smallest) == (1, 0.5, smallest[1])
    assert isinstance(caught.value, UserError)
    exactly = minimise(losses, costs, smallest, OBJECTIVES["max"])  # and this is enough
    assert exactly.choice.tolist() == [0] * 10
    assert exactly.gap <= 1e-12


def test_many_decimal_costs_never_sum_beyond_the_limit():
    """0.1 is not a binary number: running sums of a thousand of them drift, exact sums do not."""
    costs = np.tile(np.array([0.1, 0.2, 0.3]), (1, 1000, 1))
    losses = np.tile(np.array([4.0, 2.0, 1.0]), (1, 1000, 1))
    for limit in (150.0, 200.0, math.fsum([0.2] * 1000), 299.99):
        solution = minimise(losses, costs, [limit], Objective.tail(1, 1.0))
        assert limit - 0.11 <= math.fsum(costs[0, np.arange(1000), solution.choice]) <= limit


def test_a_proof_that_is_cut_short_says_so(monkeypatch):
    losses, costs = _realistic(60, widths=5)
    limits = 0.3 * costs[:, :, -1].sum(axis=1)
    optimum = minimise(losses, costs, limits, OBJECTIVES["max"])
    monkeypatch.setattr(solve, "LARGEST_CORE", 0)
    solution = minimise(losses, costs, limits, OBJECTIVES["max"])
    assert solution.gap > 1e-3
    assert solution.bound <= optimum.value <= solution.value
    assert (solution.spent <= limits).all()


def test_a_solver_stopped_by_the_clock_is_told(monkeypatch, caplog):
    losses, costs = _realistic(60, widths=5)
    limits = 0.3 * costs[:, :, -1].sum(axis=1)
    optimum = minimise(losses, costs, limits, OBJECTIVES["max"])
    assert "stopped after" not in caplog.text
    monkeypatch.setattr(core, "SECONDS", 1e-9)
    solution = minimise(losses, costs, limits, OBJECTIVES["max"])
    assert "optimal: the solver stopped after 1e-09 s with 5 groups; the widths may differ" in caplog.text
    assert solution.bound <= optimum.value <= solution.value
    assert (solution.spent <= limits).all()


def test_a_core_is_enlarged_until_the_gap_is_met(monkeypatch):
    losses, costs = _realistic(200)
    limits = 0.4 * costs[:, :, -1].sum(axis=1)
    monkeypatch.setattr(solve, "FIRST_CORE", 4)
    assert minimise(losses, costs, limits, OBJECTIVES["cvar"]).gap <= 1e-3


@pytest.mark.parametrize("wrong", [1, 6, 99])
def test_a_solution_just_beyond_a_budget_is_asked_for_again(monkeypatch, wrong):
    """A solver that takes the limits for larger than they are must not make the result exceed them."""
    losses, costs = _realistic(30, widths=4)
    limits, real, asked = 0.4 * costs[:, :, -1].sum(axis=1), core._Program.solve, []

    def generous(self, rooms, gap):
        asked.append(rooms)
        return real(self, rooms + (0.5 if len(asked) <= wrong else 0), gap)

    monkeypatch.setattr(core._Program, "solve", generous)
    solution = minimise(losses, costs, limits, OBJECTIVES["max"])
    assert len(asked) > 1
    assert (solution.spent <= limits).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"losses": np.full((2, 3, 2), np.nan)}, "losses: got NaN, infinity or a negative number"),
        ({"losses": np.full((2, 3, 2), -1.0)}, "losses: got NaN"),
        ({"losses": np.full((2, 3, 2), np.inf)}, "losses: got NaN"),
        ({"losses": np.ones((3, 3, 2))}, "objective: got 2 groups; allowed: 3, as in losses"),
        ({"costs": np.ones((1, 4, 2))}, r"costs: got shape \(1, 4, 2\); allowed: \(1, 3, 2\), W > 0"),
        ({"costs": np.array([[[2.0, 1.0]] * 3])}, "costs: got a wider choice that costs less"),
        ({"costs": np.full((1, 3, 2), np.inf)}, "costs: got NaN, infinity"),
        ({"limits": [1.0, 2.0]}, r"allowed: \(2, 3, 2\)"),
        ({"limits": [float("nan")]}, "budget 0: got nan"),
    ],
)
def test_wrong_input(change, message):
    given = {"losses": np.ones((2, 3, 2)), "costs": np.array([[[1.0, 2.0]] * 3]), "limits": [5.0], **change}
    with pytest.raises((ValueError, Infeasible), match=message):
        minimise(given["losses"], given["costs"], given["limits"], Objective.tail(2, 1.0))


def test_a_limit_short_by_the_last_bit():
    """HiGHS takes 1 + 2⁻⁵² for 1; the choice of that cost is cut off, the best of the others found and proved."""
    costs = np.array([[[0.0, 1.0], [0.0, 2.0**-52], [0.0, 0.75], [0.0, 0.25]]])
    losses = np.array([[[9.0, 0.0], [9.0, 0.0], [9.0, 5.0], [9.0, 6.0]]])
    solution = minimise(losses, costs, [1.0], Objective.tail(1, 1.0))
    assert (solution.value, solution.gap <= 1e-3) == (_brute_force(losses, costs, [1.0], Objective.tail(1, 1.0)), True)
    assert solution.spent[0] <= 1.0
