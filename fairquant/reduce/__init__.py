"""Reducers over groups: one file each, a pure numpy function from one map per group to one map.

Every plug-in defines a frozen ``Options`` and ``reduce(importance, options, *, groups, totals=None)``:

- ``importance``: float32 (G, *weight), one map per group of one layer, finite;
- ``groups``: the G group names in the order of the first axis;
- ``totals``: float64 (G,), ΣI_g over all weights of the model, for reducers that weigh groups; None: of this array;
- result: float32 (*weight). NaN or infinity raises ``UserError`` naming the group.

A reducer that does not work with every set of groups also defines ``check_groups(options, groups)``.

A reducer that orders groups' totals too, not only single weights, defines ``objective(options, totals) -> (cap,
scale)`` for allocators that minimise a loss: the largest weight one group may have in it (1/G is the mean of the
groups, 1 the worst group) and what each group's loss is multiplied by (G,), see ``fairquant.allocate.objective``.
"""
