"""From importance to bit-widths: reduce over groups, group weights into units, let an allocator choose, protect layers.

``methods/`` holds the allocators, one per file: ``allocate(importance, sizes, section) -> bits`` over all units of the
model. Everything is numpy; nothing here imports torch.
"""
