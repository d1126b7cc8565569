"""A multiple-choice knapsack over groups: one width per unit, least objective of the groups' losses within all budgets.

``minimise`` finds widths w_u with the least objective(T), T_g = Σ_u losses[g, u, w_u], among those with
Σ_u costs[k, u, w_u] ≤ limits[k] for all k, and proves how far from the least it can be. The parts: ``problem`` the
question itself with exact sums; ``dual`` a certified lower bound by Lagrangian relaxation and cutting planes; ``core``
the few choices that the bound leaves open, solved as an integer program; ``fill`` what is left of the budgets.

Dantzig & Wolfe 1960 (Operations Research 8), Kelley 1960 (J. SIAM 8), Geoffrion 1974 (Math. Programming Study 2), and
Pisinger 1995 (European J. Operational Research 83) for the core of a multiple-choice knapsack; the integer programs
are solved by HiGHS (Huangfu & Hall 2018, Math. Programming Computation 10).
"""

from fairquant.allocate.knapsack.problem import Infeasible, cheapest
from fairquant.allocate.knapsack.solve import Solution, minimise

__all__ = ["Infeasible", "Solution", "cheapest", "minimise"]
