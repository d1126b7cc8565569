"""Squares of per-sample gradients at the cost of about one backward pass: the sums of an empirical Fisher diagonal.

In evaluation mode samples do not see each other, so one backward pass from the sum of their losses gives, at every
layer's output, the gradient of each sample's own loss. Together with the layer's input that is all a sample's weight
gradient is made of (``fairquant.importance.positions``). The pass computes no weight gradient of its own; squares are
added up layer by layer while it runs (``fairquant.importance.squares``), in float32 whatever the precision of the pass.

A model this is not exact for is an error, never an approximation: the graph is searched for other uses of a weight, and
the first batch is also run backward from its last sample alone, which must leave nothing at the others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fairquant.importance.positions import Pixels, Tokens
from fairquant.importance.squares import add_squares
from fairquant.importance.tape import Call, Tape, refusal
from fairquant.models.layers import Layer, weight_parameter


class PerSampleSquares:
    """Adds up the squared gradients of single samples, batch by batch.

    The model must be in evaluation mode, and of its parameters only the layers' weights may require a gradient.
    """

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        """Prepare for ``layers``, all quantizable ones of the model by name.

        Raises ``UserError`` for a parametrized weight that is not computed element by element.
        """
        self._layers = layers
        self._slopes = {name: _slope(name, layer) for name, layer in layers.items()}
        self._inspected = False

    def __call__(self, sums: Sequence[Tensor], losses: Callable[[], Tensor], share: float) -> None:
        r"""Add ``share`` · mean_i (∂ℓ_i/∂w)² to ``sums``.

        Args:
            sums: one float32 tensor per layer, of its weight's shape; a layer no loss depends on is left as it is.
            losses: runs the forward pass of a batch and returns each sample's loss, (samples,).
            share: how much the batch counts.

        Raises ``UserError`` naming the layer where a weight is used outside ``conv2d`` and ``linear``, an input is
        changed in place after it was read, or samples see each other or do not lie along the first dimension.
        """
        tape = Tape(self._layers)
        with tape:
            values = losses()
        if not values.requires_grad:
            return
        tape.require_no_other_use(values)
        if not self._inspected and len(values) > 1:
            tape.backward(values[-1], _no_other_sample(len(values)), keep=True)
            self._inspected = True
        totals = dict(zip(self._layers, sums, strict=True))
        gathered = _Gathered(tape.calls, len(values), lambda name, calls: self._add(totals[name], name, calls, share))
        tape.backward(values, gathered.receive)
        gathered.finish()

    def _add(self, total: Tensor, name: str, calls: list[Tokens | Pixels], share: float) -> None:
        scale, slope = share / len(calls[0].deltas), self._slopes[name]
        if slope is None:
            add_squares(total, calls, scale)
        else:
            of_weight = torch.zeros_like(total)
            add_squares(of_weight, calls, scale)
            total.add_(of_weight.mul_(slope).mul_(slope))


class _Gathered:
    """Calls of each layer until all have their gradients: what a sample's calls give is added, then squared."""

    def __init__(
        self, calls: Sequence[Call], samples: int, complete: Callable[[str, list[Tokens | Pixels]], None]
    ) -> None:
        self._samples, self._complete = samples, complete
        self._missing = Counter(call.layer for call in calls)
        self._found: defaultdict[str, list[Tokens | Pixels]] = defaultdict(list)

    def receive(self, call: Call, delta: Tensor) -> None:
        """Take the gradient at one call's output."""
        value = call.take(keep=False)
        _require_rows(call.layer, len(value), self._samples)
        found = self._found[call.layer]
        if call.window is None:
            found.append(Tokens(value, delta, self._samples))
        else:
            found.append(Pixels(value, delta, self._samples, call.window))
        self._missing[call.layer] -= 1
        if not self._missing[call.layer]:
            self._complete(call.layer, self._found.pop(call.layer))

    def finish(self) -> None:
        """Complete layers of which the loss depends on some calls only."""
        for name in list(self._found):
            self._complete(name, self._found.pop(name))


def _no_other_sample(samples: int) -> Callable[[Call, Tensor], None]:
    """Return what refuses gradients at other samples than the last of ``samples``."""

    def receive(call: Call, delta: Tensor) -> None:
        rows = len(call.take(keep=True))
        _require_rows(call.layer, rows, samples)
        others = delta.reshape(rows, -1)[: rows - rows // samples]
        if bool((others.abs() > 0).any()):  # NaN is reported with the map, by group
            raise refusal(call.layer, "samples that see each other or are out of order", "independent ones in order")

    return receive


def _require_rows(name: str, rows: int, samples: int) -> None:
    if rows % samples:
        raise refusal(name, f"{rows} rows for {samples} samples", "samples along the first dimension")


def _slope(name: str, layer: Layer) -> Tensor | None:
    """Return ∂(weight used)/∂(weight stored) of a parametrized layer, element by element; None where it is 1.

    Quantizers with straight-through gradients have 0 and 1. A random direction shows whether there is more to the
    derivative than its diagonal.
    """
    stored = weight_parameter(layer)
    with torch.enable_grad():
        used = layer.weight
        if used is stored:
            return None
        if not used.requires_grad:
            return torch.zeros_like(stored)
        direction = torch.randn(used.shape, generator=torch.Generator().manual_seed(0)).to(used)
        ways = (torch.ones_like(used), direction)
        slope, along = (torch.autograd.grad(used, stored, way, retain_graph=True)[0] for way in ways)
    if used.shape != stored.shape or not torch.allclose(along, direction * slope, rtol=1e-3, atol=1e-5):
        raise refusal(name, "a parametrization that mixes weights", "one that takes each weight by itself")
    return None if bool((slope == 1).all()) else slope
