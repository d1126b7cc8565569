"""How a convolution or a pooling moves over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fairquant.errors import UserError


@dataclass(frozen=True)
class Window:
    """How a convolution or pooling moves over an image: pairs (vertical, horizontal), ``pads`` of the four sides."""

    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    groups: int = 1
    rounds_up: bool = False
    """Whether a pooling has a last window where one fits partly (ONNX's ceil_mode)."""

    @property
    def padding(self) -> list[int]:
        """In torch's order: left, right, top, bottom."""
        top, left, bottom, right = self.pads
        return [left, right, top, bottom]

    def padded(self, x: Tensor, kernel: Sequence[int], *, outside: float, beyond: float) -> Tensor:
        """Return ``x`` (…, H, W) with ``outside`` in the padding, and ``beyond`` where a last window reaches past it.

        A window that would begin behind the image is left out, as in torch and onnxruntime.
        """
        reach = [0, 0]
        for axis in (0, 1):
            size, step, span = x.shape[-2 + axis], self.strides[axis], self.dilations[axis] * (kernel[axis] - 1) + 1
            whole = size + self.pads[axis] + self.pads[axis + 2]
            last = -(-(whole - span) // step)
            if last * step >= size + self.pads[axis]:
                last -= 1
            reach[axis] = max(0, last * step + span - whole) if self.rounds_up else 0
        return F.pad(F.pad(x, self.padding, value=outside), [0, reach[1], 0, reach[0]], value=beyond)


def window_of(attributes: dict[str, Any], name: str) -> Window:
    """Return how a convolution or pooling moves over images.

    Raises ``UserError`` for other than two dimensions and automatic padding.
    """
    strides, dilations = (tuple(attributes.get(key, (1, 1))) for key in ("strides", "dilations"))
    pads = tuple(attributes.get("pads", (0, 0, 0, 0)))
    automatic = attributes.get("auto_pad", b"NOTSET").decode()
    if (len(strides), len(dilations), len(pads)) != (2, 2, 4):
        raise UserError(f"{name}: got strides {strides} and pads {pads}; allowed: images of two dimensions")
    if automatic not in ("NOTSET", "VALID"):
        raise UserError(f"{name}: got auto_pad {automatic}; allowed: pads")
    return Window(strides, dilations, pads, attributes.get("group", 1), bool(attributes.get("ceil_mode", 0)))
