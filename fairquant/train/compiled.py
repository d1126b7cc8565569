"""Training steps through torch.compile, or in plain torch with one line that says why not.

Compiled is the model alone. Weights with a parametrization (quantizers, frozen units) are computed before it, in plain
torch, and handed in as ordinary tensors with their graph: quantizers keep their memory and their state, nothing about
them is guarded on, and the model is one graph whatever mode it is trained in. So widths may land, units freeze and step
sizes be measured anew without compiling again.

Compilation is lazy and fails late, in the first call or in its backward pass. Therefore the first training batch is
tried, forward and backward, and undone: buffers (batch norm, observers), random numbers and gradients are as before. If
anything is raised, training goes on in plain torch. What plain torch does too: evaluation, batches of another size than
the first (the last one of an epoch: seen once, it would not repay compiling), and forward passes under a
``TorchFunctionMode`` (batch norm over several processes), which a compiled graph would not see.

Compiled and plain steps agree to rounding. Dropout draws other numbers, from the same seed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

LOG = logging.getLogger(__name__)
Forward = Callable[[Tensor], Tensor]


def compiled(model: nn.Module, wanted: bool) -> Forward:
    """Return the forward pass of ``model``, compiled where that is ``wanted`` and possible.

    Args:
        model: (B, 3, H, W) -> (B, C), on its device and laid out as it will be trained, without a wrapper (the
            gradients' averaging over processes works on parameters). It is used as it is, mode and weights included.
        wanted: params.yaml's ``compile``.
    """
    return _Compiled(model) if wanted else model


class _Compiled:
    """A forward pass that is compiled at its first training batch."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._graph: Forward | None = None
        self._shape: torch.Size | None = None  # of the batches that were tried

    def __call__(self, images: Tensor) -> Tensor:
        if not (self.model.training and torch.is_grad_enabled()):
            return self._plain(images)
        if self._shape is None:
            self._shape = images.shape
            self._graph = self._try(images)
        if self._graph is None or images.shape != self._shape or _modes():
            return self._plain(images)
        with weights_in_place(self.model):
            return self._graph(images)

    def _plain(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits

    def _try(self, images: Tensor) -> Forward | None:
        """Return the compiled model after one step that leaves no trace; None, with a warning, where it fails."""
        modes = _modes()
        if modes:
            _warn(f"a forward pass under {type(modes[-1]).__name__} (parallel.batch_norm: local has none)")
            return None
        LOG.info("compile: the first step takes a minute or more")
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        try:
            graph: Forward = torch.compile(self.model, dynamic=False)
            with undone(self.model, images.device), weights_in_place(self.model):
                torch.autograd.grad(graph(images).float().sum(), trained, allow_unused=True)
        except Exception as error:  # whatever a compiler raises: plain torch meets a fault of the model again by itself
            _warn(_first_line(error))
            return None
        return graph


def _modes() -> list[TorchFunctionMode]:
    found: list[TorchFunctionMode] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return found


def _warn(reason: str) -> None:
    LOG.warning("compile: got %s; training goes on in plain torch", reason)


def _first_line(error: BaseException) -> str:
    """Return what went wrong first, in one line: compilers wrap one error into another."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0].strip()}" if text else type(error).__name__


@contextmanager
def weights_in_place(model: nn.Module) -> Iterator[None]:
    """Compute what the parametrizations of ``model`` give, and let its layers be plain ones that hold it, for now.

    Inside, ``model`` is used by one thread; its state dict is not to be asked for.
    """
    found = [module for module in model.modules() if parametrize.is_parametrized(module)]
    values = [{name: getattr(module, name) for name in module.parametrizations} for module in found]  # type: ignore[union-attr]
    classes = [type(module) for module in found]
    for module, tensors, own in zip(found, values, classes, strict=True):
        module.__class__ = own.__bases__[0]  # what parametrize made a subclass of, with properties for the weights
        module.__dict__.update(tensors)
    try:
        yield
    finally:
        for module, tensors, own in zip(found, values, classes, strict=True):
            for name in tensors:
                del module.__dict__[name]
            module.__class__ = own


@contextmanager
def undone(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Take back what happens inside to the buffers of ``model`` and to torch's random numbers."""
    held = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            with torch.no_grad():
                for module, name, buffer, before in held:
                    module._buffers[name] = buffer
                    if not torch.equal(buffer, before):  # what is prepared for unchanged ones stays
                        buffer.copy_(before)
