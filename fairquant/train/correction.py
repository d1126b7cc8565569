"""Batch-norm statistics and biases corrected for what rounding did to the layers before them.

Rounding shifts and scales what a layer puts out; the running mean and variance of the full-precision model no longer
fit, and the error grows from layer to layer. Measuring what changed needs forward passes over some training images, no
labels and no gradients (Sun et al. 2019, "Hybrid 8-bit Floating Point Training and Inference for Deep Neural Networks",
NeurIPS, section 3; Finkelstein, Almog & Grobman 2019, arXiv 1906.03193; Nagel et al. 2019, arXiv 1906.04721, section
4.2, on the bias).

**Batch norm.** With x the input of a layer before rounding and y after it, for the same images, the layer is given the
statistics with which what it puts out comes closest to what it put out before, in the least squares, channel by
channel:

    running mean ← m_y + r · (running mean − m_x)     running variance ← r² · running variance     r = var y / cov(x, y)

(1/r is the slope of the regression of x on y, taken between ½ and 2.) A channel that rounding turned into noise is
damped, not blown up to the variance it had; one that it shrank is stretched. The running statistics are corrected, not
replaced: they come from a whole training with augmentation, and replacing them by those of some plain images changes
the predictions of a model that was not rounded at all. This way nothing rounded is nothing changed.

**Biases.** A convolution or linear layer with a bias gets back the mean that its output had: bias ← bias + (m_x − m_y),
m over images and positions. The classifier has no batch norm behind it, and a rectifier turns lost variance into a
shift of every logit; models without batch norm have nothing else.

Both models run in evaluation mode, side by side. Each layer of the rounded one is corrected, by all batches so far,
before it passes a batch on, so that later layers see what they will see.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fairquant.data.batches import iterate
from fairquant.data.store import Store
from fairquant.devices import autocast
from fairquant.errors import UserError
from fairquant.models.layers import Layer, quantizable_layers

BATCH = 64
"""Images per batch: the inputs of all layers are held for one batch."""
LARGEST = 2.0
"""Of r and 1/r: beyond a factor of two, what a channel did on these images says little about others."""
CONSTANT = 1e-12
"""A channel's variance over its mean square at which it is a constant with rounding error of the sums."""


def correct(
    model: nn.Module,
    reference: nn.Module,
    store: Store,
    *,
    samples: int,
    device: torch.device,
    precision: str = "fp32",
    seed: int,
) -> int:
    """Correct the running statistics of every batch-norm layer, and every bias behind a weight, of ``model`` in place.

    Args:
        model: the rounded model, on ``device``; its statistics and biases are still those of ``reference``.
        reference: the full-precision model, on ``device``; left as it was. Both must be in evaluation mode.
        store: the prepared data; un-augmented images of its train split are read.
        samples: how many images, drawn by ``seed``; all where there are fewer.
        device: where to compute.
        precision: fp32, or bf16 for autocast.
        seed: of the draw.

    Returns:
        How many layers were corrected: those the images passed through.

    Raises ``UserError`` for fewer than two images: one has no variance.
    """
    pairs: list[_Norm | _Bias] = [
        *(_Norm(old, new) for old, new in zip(_norms(reference), _norms(model), strict=True)),
        *(_Bias(old, new) for old, new in zip(_biased(reference), _biased(model), strict=True)),
    ]
    rows = np.random.default_rng(seed).permutation(store.indices("train"))[:samples]
    if len(rows) < 2:
        raise UserError(f"quantize.correction_images: got {len(rows)} images; allowed: 2 or more of the train split")
    hooks = [hook for pair in pairs for hook in pair.hooks()]
    try:
        with torch.no_grad():
            for part in np.array_split(rows, max(1, round(len(rows) / BATCH))):
                for batch in iterate(store, part, batch_size=len(part), device=device):
                    with autocast(device, precision):
                        reference(batch.images)
                        model(batch.images)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(pair.count > 0 for pair in pairs)


class _Norm:
    """One batch-norm layer before and after rounding, and sums over what both were given."""

    def __init__(self, old: _BatchNorm, new: _BatchNorm) -> None:
        self.old, self.new = old, new
        self.mean, self.variance = (value.double().clone() for value in _running(old))
        self.given: list[Tensor] = []  # one for each use of the layer in a forward pass
        self.count = 0
        self.sums = [torch.zeros_like(self.mean) for _ in range(4)]

    def hooks(self) -> list[torch.utils.hooks.RemovableHandle]:
        """Watch the inputs of both layers."""
        return [self.old.register_forward_pre_hook(self._before), self.new.register_forward_pre_hook(self._after)]

    def _before(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.given.append(inputs[0].clone())  # a model may go on to add to it in place

    def _after(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        given = self.given.pop(0)
        x, y = (_channels(value) - self.mean[:, None] for value in (given, inputs[0]))  # near 0: sums of squares
        self.count += x.shape[1]
        for total, value in zip(self.sums, (x, y, x * y, y * y), strict=True):
            total += value.sum(dim=1)
        self._correct()

    def _correct(self) -> None:
        """Set the new layer's running statistics by what was seen so far."""
        x, y, xy, yy = (total / self.count for total in self.sums)
        variance, covariance = yy - y * y, xy - x * y
        ratio = torch.where(covariance > 0, variance / covariance, LARGEST).clamp(1 / LARGEST, LARGEST)
        ratio = torch.where(variance > CONSTANT * yy, ratio, 1.0)  # a constant comes out the same, divided by whatever
        mean, spread = _running(self.new)
        mean.copy_(self.mean + y - ratio * x)
        spread.copy_(ratio.square() * self.variance)


class _Bias:
    """One layer with a bias before and after rounding, and the sums of what both put out."""

    def __init__(self, old: Layer, new: Layer) -> None:
        self.old, self.new = old, new
        self.bias = _bias(old).detach().double().clone()
        self.given: list[Tensor] = []  # sums, one for each use of the layer in a forward pass
        self.count = 0
        self.lost = torch.zeros_like(self.bias)

    def hooks(self) -> list[torch.utils.hooks.RemovableHandle]:
        """Watch the outputs of both layers."""
        return [self.old.register_forward_hook(self._before), self.new.register_forward_hook(self._after)]

    def _sum(self, output: Tensor) -> tuple[Tensor, int]:
        values = _channels(output if isinstance(self.old, nn.Conv2d) else output.flatten(0, -2))
        return values.sum(dim=1), values.shape[1]

    def _before(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.given.append(self._sum(output)[0])

    def _after(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        total, count = self._sum(output)
        moved = _bias(self.new).double() - self.bias
        self.count += count
        self.lost += self.given.pop(0) - (total - moved * count)
        bias = self.bias + self.lost / self.count
        step = (bias - self.bias - moved).to(output.dtype)
        _bias(self.new).copy_(bias)
        return output + (step[:, None, None] if isinstance(self.old, nn.Conv2d) else step)


def _norms(model: nn.Module) -> list[_BatchNorm]:
    found = (module for module in model.modules() if isinstance(module, _BatchNorm))
    return [layer for layer in found if layer.running_mean is not None]


def _biased(model: nn.Module) -> list[Layer]:
    return [layer for layer in quantizable_layers(model).values() if layer.bias is not None]


def _bias(layer: Layer) -> Tensor:
    if layer.bias is None:
        raise ValueError("bias: got a layer without one; allowed: one that has a bias")
    return layer.bias


def _running(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    if layer.running_mean is None or layer.running_var is None:
        raise ValueError("batch norm: got a layer without running statistics; allowed: one that tracks them")
    return layer.running_mean, layer.running_var


def _channels(value: Tensor) -> Tensor:
    """Return an input (N, C, …) as (C, values), float64."""
    return value.double().transpose(0, 1).flatten(1)
