"""The assign stage: importance maps and weights → predicted losses → widths within a budget, and why.

``losses`` predicts what every width costs every group, ``budget`` prices widths, ``spend`` brings both before an
allocator, ``per_param`` does the same for single weights, ``explain`` says why, ``measure`` checks predictions.
"""
