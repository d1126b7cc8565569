"""How the step size Δ (and the zero point) of a row of weights is chosen: one file per method.

Contract: a file ``<name>.py`` defines

- ``make_scale(weight, largest, *, percentile) -> Tensor``: ``weight`` is (r, n), one row per channel (or one row for a
  whole tensor); ``largest`` is M = 2^(b−1) − 1, (r, 1) where a row has one width, (r, n) where each weight has its own.
  Returns positive, finite step sizes of the shape of ``largest``. Rows never influence each other. Widths without a
  grid (0, 1 and 32 bits) come with M = 0.5 and their answer is not used.
- ``make_grid(weight, levels, *, percentile) -> tuple[Tensor, Tensor]`` (optional): the same for asymmetric grids, of
  L = 2^b − 1 steps. Returns step sizes and zero points in 0…L, whole floats, both of the shape of ``levels``.
- ``REFRESH``: "step" (measured anew at every training step), "epoch" (at the start of every epoch) or "learned"
  (measured once, then a parameter trained by LSQ's gradient).
- ``CLIPS`` (optional, default True): False promises |w| ≤ M·Δ (asymmetric: at most half a step outside the
  grid), which makes the backward pass free.
- ``ladder(weight, largest, *, percentile, importance=None) -> Tensor`` (optional): step sizes (r, W) at the W values M
  of the sequence ``largest`` at once; without importance those of ``make_scale``, bit for bit. ``importance`` (r, n) is
  finite and not negative; a method that does not weigh by it leaves it alone. Widths without a grid are not asked for.
- ``sign_step(weight, *, importance) -> Tensor`` (optional): the step size (r, 1) at 1 bit where there is importance;
  mean |w| otherwise.
"""
