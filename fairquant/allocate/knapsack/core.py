"""The core: the choices that the bound leaves open, as a small integer program for HiGHS.

A choice whose reduced cost (its priced loss above the unit's best) lifts the bound to the best known value cannot be
part of anything better and is closed. Where more than a few hundred choices stay open, those of the smallest reduced
cost are taken: the program's solution is then good, but only the Lagrangian bound certifies it.

``min t + cap·Σ_g s_g`` subject to ``t + s_g ≥ scale_g·T_g``, ``s ≥ 0``, each unit one choice, and the budgets, is the
objective as a linear program (Rockafellar & Uryasev 2002); with cap = 1 no s is needed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from fairquant.allocate.knapsack.dual import Relaxation
from fairquant.allocate.knapsack.problem import Choice, Floats

LOG = logging.getLogger(__name__)
NODES = 5_000  # of the branch-and-bound tree: ends a hard search at the same place on every machine
SECONDS = 20.0  # the last resort, should even few nodes take long
MARGIN = 1e-6  # HiGHS's own tolerances, as a share of the objective: taken off the bounds it reports
INFEASIBLE = 2  # scipy's status
TOLERANCE = 1e-6  # by which HiGHS may exceed a budget, in the program's units
EXCLUDED, TIGHTENED = 4, 6  # choices just beyond a budget that are cut off one by one; then the budgets are tightened

Open = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CoreResult:
    """The program's best choice (U,), None where it found none, and its bound on all choices within the core."""

    choice: Choice | None
    bound: float


def open_choices(reduced: Floats, base: Choice, slack: float, most: int) -> tuple[Open, bool]:
    """Return which choices (U, W) stay open, and whether every choice of reduced cost < ``slack`` is among them.

    ``base`` is always open; of the others the ``most`` of smallest reduced cost (ties: the lower unit, then width).
    """
    units = np.arange(len(base))
    others = reduced < slack
    others[units, base] = False
    numbers = np.flatnonzero(others)
    complete = len(numbers) <= most
    if not complete:
        numbers = numbers[np.argsort(reduced.reshape(-1)[numbers], kind="stable")[:most]]
    chosen = np.zeros(reduced.shape, dtype=bool)
    chosen.reshape(-1)[numbers] = True
    chosen[units, base] = True
    return chosen, complete


def solve_core(relaxation: Relaxation, chosen: Open, unit: float, gap: float) -> CoreResult:
    """Solve the problem over the open choices (U, W) within a relative ``gap``; ``unit`` is the objective's scale."""
    program = _Program(relaxation, chosen, unit)
    bound, rooms = -np.inf, program.rooms
    for attempt in range(EXCLUDED + TIGHTENED):
        result = program.solve(rooms, gap)
        proved = np.inf if result.status == INFEASIBLE else result.mip_dual_bound
        if attempt <= EXCLUDED and proved is not None:
            bound = max(bound, (float(proved) - MARGIN) * unit)
        if result.x is None:
            return CoreResult(None, bound)
        choice = program.choice(result.x)
        if relaxation.problem.fits(choice):
            return CoreResult(choice, bound)
        if attempt < EXCLUDED:
            program.exclude(choice)
        else:
            rooms = rooms - TOLERANCE * 2.0 ** (attempt - EXCLUDED)
    return CoreResult(None, bound)


class _Program:
    """The integer program: variables are the open choices of units that have several, then t and s."""

    def __init__(self, relaxation: Relaxation, chosen: Open, unit: float) -> None:
        problem = relaxation.problem
        self.fixed = chosen.argmax(axis=1)  # the only open choice, and the cheapest open one of the others
        self.rows, self.widths = np.nonzero(chosen & (chosen.sum(axis=1) > 1)[:, None])
        _, self.unit_of = np.unique(self.rows, return_inverse=True)
        settled = chosen.sum(axis=1) == 1
        scale = relaxation.scale / unit
        taken = relaxation.losses[:, problem.units, self.fixed].astype(np.float64)
        self.constant: Floats = scale * (taken * settled).sum(axis=1)
        self.losses: Floats = scale[:, None] * relaxation.losses[:, self.rows, self.widths].astype(np.float64)
        costs = problem.costs[relaxation.binding]
        steps = costs[:, self.rows, self.widths] - costs[:, self.rows, self.fixed[self.rows]]
        # in units of the largest step: one weight's bit stays far above HiGHS's tolerance of 1e-6
        self.sizes: Floats = np.maximum(steps.max(axis=1, initial=0.0), np.finfo(float).tiny)
        self.steps: Floats = steps / self.sizes[:, None]
        left = problem.limits - problem.spent(self.fixed)
        self.rooms: Floats = left[relaxation.binding] / self.sizes
        self.cap = relaxation.cap
        self.excluded: list[npt.NDArray[np.bool_]] = []

    def exclude(self, choice: Choice) -> None:
        """Cut off one choice of all units, and nothing else: not all of its variables may be 1 together."""
        self.excluded.append(self.widths == choice[self.rows])

    def solve(self, rooms: Floats, gap: float) -> Any:
        """Run HiGHS; the result is scipy's."""
        groups, columns, units = len(self.losses), len(self.rows), int(self.unit_of.max(initial=-1)) + 1
        slacks = 0 if self.cap >= 1 else groups
        one_each = sparse.csr_matrix((np.ones(columns), (self.unit_of, np.arange(columns))), (units, columns))
        above = [sparse.csr_matrix(self.losses), -np.ones((groups, 1))]
        if slacks:
            above.append(-sparse.eye(groups))
        constraints = [LinearConstraint(sparse.hstack(above, format="csc"), -np.inf, -self.constant)]
        rest = 1 + slacks
        if units:
            constraints.append(LinearConstraint(_widen(one_each, rest), 1, 1))
        if len(rooms):
            constraints.append(LinearConstraint(_widen(sparse.csr_matrix(self.steps), rest), -np.inf, rooms))
        if self.excluded:
            together = sparse.csr_matrix(np.array(self.excluded, dtype=np.float64))
            constraints.append(LinearConstraint(_widen(together, rest), -np.inf, units - 1))
        result = milp(
            np.concatenate([np.zeros(columns), [1.0], np.full(slacks, self.cap)]),
            constraints=constraints,
            integrality=np.concatenate([np.ones(columns), np.zeros(rest)]),
            bounds=Bounds(
                np.zeros(columns + rest),
                np.concatenate([np.ones(columns), np.full(rest, np.inf)]),
            ),
            options={"mip_rel_gap": gap, "node_limit": NODES, "time_limit": SECONDS},
        )
        if "time limit" in str(result.message).lower():
            LOG.warning(
                "optimal: the solver stopped after %g s with %d groups; the widths may differ on a faster machine "
                "(assign.optimal.gap: a larger one ends earlier)",
                SECONDS,
                groups,
            )
        return result

    def choice(self, x: Floats) -> Choice:
        """Return the choice of every unit (U,) from the program's variables."""
        choice: Choice = self.fixed.copy()
        taken = x[: len(self.rows)] > 0.5
        choice[self.rows[taken]] = self.widths[taken]
        return choice


def _widen(matrix: sparse.csr_matrix, columns: int) -> sparse.csc_matrix:
    """Append empty columns."""
    return sparse.hstack([matrix, sparse.csr_matrix((matrix.shape[0], columns))], format="csc")
