"""How the range of a tensor of activations is found: one file per observer.

Contract: a file ``<name>.py`` defines

- ``make_observer(*, bits, scheme, momentum, percentile) -> Observer``: a module of ``_base.Observer``'s kind. ``bits``
  and ``scheme`` (asymmetric | symmetric) are those of the grid the range is for; a method may leave settings unused.
  Calling it with a tensor takes the tensor in and returns nothing. It never waits for the device, keeps bounded memory
  and holds all it knows in buffers, so that a resumed run continues bit for bit; the same tensors in the same order
  give the same range. ``range()`` returns the low and high end, float32 tensors of shape () on the device, with
  low ≤ high; it need not hold 0. Before anything was seen, low is ∞ and high −∞.
- ``TRAINS``: True where the range goes on moving while the model trains; False where it is found in calibration,
  before training or instead of it. The observer has an attribute of the same name and value.

A file does not import torch before ``make_observer`` is called; modules that do start with an underscore.
"""
