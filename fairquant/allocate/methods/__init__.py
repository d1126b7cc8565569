"""Allocators: one file each, ``allocate(importance, sizes, section) -> bits``.

- ``importance``: float (U,), finite, the mean reduced importance of each unit, in model order;
- ``sizes``: int64 (U,), parameters in each unit, ≥ 1;
- ``section``: the ``assign`` section of params.yaml;
- result: uint8 (U,), the bit-width of each unit.
"""
