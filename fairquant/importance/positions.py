"""What one call of a convolution or linear layer read at each position, and the gradient of what it gave there.

At position p of sample i the layer multiplies its weight, taken as a matrix, with a vector a_ip; δ_ip is the gradient
of the loss with respect to the product, so that the gradient of sample i's loss is Σ_p δ_ip a_ipᵀ. The positions of a
linear layer are its tokens; those of a convolution are its output's pixels, and a_ip is the patch under the kernel.

Matrices have the columns of weights in channels-last layout: kernel row, kernel column, channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """How a convolution moves its kernel; pairs are (vertical, horizontal), ``padding`` is left, right, top, bottom."""

    kernel: Pair
    stride: Pair
    padding: tuple[int, int, int, int]
    dilation: Pair
    groups: int

    @classmethod
    def of(
        cls,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
    ) -> Window:
        """Return the window of the call ``conv2d(input, weight, bias, stride, ...)``.

        >>> Window.of(torch.empty(1, 1, 4, 3), padding="same", dilation=2).padding
        (2, 2, 3, 3)
        """
        kernel, spread = (weight.shape[2], weight.shape[3]), _pair(dilation)
        if isinstance(padding, str):  # "same" needs this much in all, the odd one after; "valid" none
            down, right = (step * (size - 1) * (padding == "same") for step, size in zip(spread, kernel, strict=True))
            sides = (right // 2, right - right // 2, down // 2, down - down // 2)
        else:
            high, wide = _pair(padding)
            sides = (wide, wide, high, high)
        return cls(kernel, _pair(stride), sides, spread, groups)


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


class Tokens:
    """The positions of one call of a linear layer.

    Attributes:
        deltas: δ, (samples, groups, out / groups, positions) float32; a linear layer is one group.
    """

    def __init__(self, value: Tensor, delta: Tensor, samples: int) -> None:
        """Take the layer's input and output gradient, with ``samples`` in order along the first dimension."""
        self._values = value.float().reshape(samples, 1, -1, value.shape[-1])
        self.deltas = delta.float().reshape(samples, 1, -1, delta.shape[-1]).transpose(2, 3)

    def blocks(self, start: int, stop: int, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (δ, a) of the samples start … stop: one block, as tokens need no memory of their own."""
        yield self.deltas[start:stop], self._values[start:stop]


class Pixels:
    """The positions of one call of a convolution.

    Attributes:
        deltas: δ, (samples, groups, out / groups, positions) float32.
    """

    def __init__(self, value: Tensor, delta: Tensor, samples: int, window: Window) -> None:
        """Take the layer's input and output gradient, with ``samples`` in order along the first dimension.

        A sample may own several images, windows of it, say.
        """
        delta = delta.movedim(1, 3).float()
        self._high, self._wide = delta.shape[1], delta.shape[2]
        rows = delta.reshape(samples, -1, window.groups, delta.shape[3] // window.groups)
        self.deltas = rows.permute(0, 2, 3, 1)
        self._patches = _patches(value.movedim(1, 3).float(), samples, window, self._high, self._wide)

    def blocks(self, start: int, stop: int, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (δ, a) of the samples start … stop, in blocks whose a has at most about ``limit`` numbers.

        a is (samples, groups, positions, kernel · channels / groups). A block holds whole rows of the output; without
        ``limit`` there is one.
        """
        deltas, patches = self.deltas[start:stop], self._patches[start:stop]
        split = limit is not None and patches.shape[2] == 1  # the positions of one image are rows on end
        step = max(1, (limit or 0) * self._high // patches.numel()) if split else self._high
        if step >= self._high:
            yield deltas, patches.flatten(5).flatten(2, 4)
            return
        for top in range(0, self._high, step):
            part = patches[:, :, :, top : top + step].flatten(5).flatten(2, 4)
            first = top * self._wide
            yield deltas[..., first : first + part.shape[2]], part

    def depthwise(self, start: int, stop: int) -> Tensor:
        """Return Σ_p δ_ip a_ip where every channel is a group: (samples, channels, kernel)."""
        patches = self._patches[start:stop, ..., 0]
        deltas = self.deltas[start:stop, :, 0].reshape(patches.shape[:5])
        places = [(row, column) for row in range(patches.shape[5]) for column in range(patches.shape[6])]
        return torch.stack([(deltas * patches[..., row, column]).sum((2, 3, 4)) for row, column in places], 2)


def _patches(images: Tensor, samples: int, window: Window, high: int, wide: int) -> Tensor:
    """Return what the kernel sees at each of ``high`` · ``wide`` positions, a view of channels-last ``images``.

    The view is (samples, groups, images, rows, columns, kernel rows, kernel columns, channels / groups).
    """
    if any(window.padding):
        images = F.pad(images, (0, 0, *window.padding))
    count, channels = len(images) // samples, images.shape[3] // window.groups
    image, down, right, channel = images.stride()
    (stride_y, stride_x), (spread_y, spread_x) = window.stride, window.dilation
    return images.as_strided(
        (samples, window.groups, count, high, wide, *window.kernel, channels),
        (
            *(image * count, channel * channels, image),
            *(down * stride_y, right * stride_x, down * spread_y, right * spread_x, channel),
        ),
    )
