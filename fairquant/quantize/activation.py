"""Fake quantization of one tensor of activations: an observer finds its range, the range gives the grid.

Static: the range is found in calibration (``observing``, then ``settle``), or follows training where the observer
``TRAINS``. Dynamic: it is that of each incoming tensor, so nothing is kept; a sample's result then depends on the
others in its batch. The arithmetic is ``fairquant.quantize.affine``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fairquant import plugins
from fairquant.errors import ArtifactError, UserError
from fairquant.parallel.collectives import world_size
from fairquant.quantize.affine import Codes, fake_quantize_affine
from fairquant.quantize.observers._base import Observer, extremes, in_memory_order


class ActivationQuantizer(nn.Module):
    """Floating tensor → the same tensor rounded to a grid of 2^b (symmetric: 2^b − 1) values, one of which is 0.

    In training mode an observer that ``TRAINS`` sees every tensor, and the grid follows before the tensor is rounded;
    several processes, which have a part of the batch each, see the extremes of all parts.
    What comes out has the dtype that came in: under autocast to bfloat16 codes and products are computed in float32
    and rounded to bfloat16 at the end, which the layer that follows would do anyway. Empty tensors pass unchanged and
    teach nothing. Nothing in ``forward`` waits for the device.

    Attributes:
        observing: whether ``forward`` shows tensors to the observer outside training too (calibration).
        quantizing: whether ``forward`` rounds; False returns the tensor itself.
        scale: Δ, float32 of shape (), 0 before there is a grid; None where dynamic.
        zero_point: z, int32 of shape (); None where dynamic.
        observer: finds the range; None where dynamic. Its part of the state (``observer.…``) is needed to go on
            training or calibrating only.
    """

    scale: Tensor | None
    zero_point: Tensor | None
    observer: Observer | None

    def __init__(
        self,
        *,
        bits: int,
        scheme: str,
        observer: str,
        momentum: float = 0.1,
        percentile: float = 99.99,
        dynamic: bool = False,
    ) -> None:
        """Start without a grid.

        Args:
            bits: 2 to 16.
            scheme: asymmetric | symmetric.
            observer: a plug-in of ``fairquant.quantize.observers``; not used where ``dynamic``.
            momentum: in (0, 1]; of ``moving_average``.
            percentile: in (50, 100]; of ``percentile``.
            dynamic: take the range of each incoming tensor.

        Raises:
            UserError: a width, scheme or observer that does not exist.
        """
        super().__init__()
        self.codes = Codes.of(bits, scheme)
        self.bits, self.scheme, self.method, self.dynamic = bits, scheme, observer, dynamic
        self.observing, self.quantizing = False, True
        self.ready = dynamic
        make = plugins.load("observer", observer).make_observer
        settings = {"bits": bits, "scheme": scheme, "momentum": momentum, "percentile": percentile}
        self.observer = None if dynamic else make(**settings)
        self.register_buffer("scale", None if dynamic else torch.tensor(0.0))
        self.register_buffer("zero_point", None if dynamic else torch.tensor(0, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (any shape, floating) on the grid; ``UserError`` where there is none yet."""
        if x.numel() or (self.training and world_size() > 1):  # others may have the rest of the batch
            self._observe(x)
        if x.numel() == 0 or not self.quantizing:
            return x
        if not self.ready:
            raise UserError("activations: got no range yet; allowed: after calibration, or with a saved grid")
        scale, zero_point = self._grid(x)
        return fake_quantize_affine(x, scale, zero_point, self.codes)

    @torch.no_grad()
    def settle(self, *, point: str = "activations") -> None:
        """Set the grid from the observer's range; nothing to do where dynamic.

        Raises ``UserError``, calling the tensor ``point``, where nothing was seen or something was not finite.
        """
        if self.observer is None:
            return
        if not bool(self.observer.finite):
            raise UserError(f"{point}: got activations that are NaN or infinite; allowed: finite numbers")
        if bool(torch.isposinf(self.observer.low)):
            raise UserError(f"{point}: got no images to find the range of activations on; allowed: at least one batch")
        self._set(*self.observer.range())

    @torch.no_grad()
    def load_grid(self, scale: Tensor, zero_point: Tensor) -> None:
        """Take over a saved grid: ``scale`` > 0 and an integer ``zero_point``, each with one element.

        Raises ``ArtifactError`` for values that are no grid of this width and scheme, and where dynamic.
        """
        if self.scale is None or self.zero_point is None:
            raise ArtifactError("activation grid: got one for dynamic quantization; allowed: none")
        if scale.numel() != 1 or not bool(torch.isfinite(scale).all()) or not bool((scale > 0).all()):
            raise ArtifactError(f"activation scale: got {scale.tolist()}; allowed: one positive number")
        least, largest = (0, 0) if self.codes.symmetric else (self.codes.least, self.codes.largest)
        if zero_point.numel() != 1 or not least <= float(zero_point) <= largest or float(zero_point) % 1:
            allowed = f"a whole number from {least} to {largest}" if largest else "0 (symmetric)"
            raise ArtifactError(f"activation zero point: got {zero_point.tolist()}; allowed: {allowed}")
        self.scale.copy_(scale.reshape(()))
        self.zero_point.copy_(zero_point.reshape(()))
        self.ready = True

    def _observe(self, x: Tensor) -> None:
        if self.observer is None:
            return
        follows = self.training and self.observer.TRAINS
        if follows or self.observing:
            self.observer(x)
        if follows:
            self._set(*self.observer.range())

    @torch.no_grad()
    def _set(self, low: Tensor, high: Tensor) -> None:
        assert self.scale is not None and self.zero_point is not None  # not dynamic
        scale, zero_point = self.codes.grid(low, high)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)
        self.ready = True

    def _grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.scale is None or self.zero_point is None:
            return self.codes.grid(*extremes(in_memory_order(x.detach())))
        return self.scale, self.zero_point

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Know again whether there is a grid."""
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if self.scale is not None:
            self.ready = bool(self.scale > 0)

    def extra_repr(self) -> str:
        """Say how the tensor is quantized."""
        return f"bits={self.bits}, scheme={self.scheme}" + (
            ", dynamic" if self.dynamic else f", observer={self.method}"
        )
