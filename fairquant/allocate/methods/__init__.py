"""Allocators, one file each, of two kinds.

Those that rank define ``allocate(importance, sizes, section) -> bits``:

- ``importance``: float (U,), finite, the mean reduced importance of each unit, in model order;
- ``sizes``: int64 (U,), parameters in each unit, ≥ 1;
- ``section``: the ``assign`` section of params.yaml;
- result: uint8 (U,), the bit-width of each unit.

Those that spend a budget say ``SPENDS = True`` and define ``allocate(problem, section) -> solution``:

- ``problem``: a ``fairquant.allocate.spending.Spending``, the predicted losses and the costs of every width;
- result: a ``fairquant.allocate.spending.Spent``, what was chosen and how good it is.
"""
