"""optimal: the widths of least predicted loss within a budget.

For every unit u a width b_u is chosen from ``assign.optimal.bits`` so as to

    minimise  objective_g( Σ_u L_g(u, b_u) )   subject to   Σ_u cost_k(u, b_u) ≤ budget_k

L_g is the loss increase that the importance metric predicts for group g when u is rounded to b bits; the objective over
groups follows the reducer (mean, the worst group, CVaR, the worst relative to the groups' shares); budgets count bits,
packed bytes and bit operations. This is a multiple-choice knapsack with several coupling rows (Kellerer, Pferschy,
Pisinger, "Knapsack Problems", 2004, chapter 11): ``fairquant.allocate.knapsack`` solves it by its Lagrangian dual and a
small mixed-integer core (HiGHS) and certifies how far from the optimum the result can be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fairquant.allocate.spending import Spending, Spent
    from fairquant.config.schema import AssignSection

SPENDS = True


def allocate(problem: Spending, section: AssignSection) -> Spent:
    """Return the best widths of ``problem``, within the share ``section.optimal.gap`` of the optimum."""
    return problem.minimise(gap=section.optimal.gap)
