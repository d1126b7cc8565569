"""A record of what layers read in a forward pass, from which their output gradients are handed out in a backward pass.

Weights are recognised where ``conv2d`` and ``linear`` get them, so that every module that calls these with its own
weight is covered: padding modes, timm's ``Conv2dSame``, layers used twice. What else the loss does with a weight
(``MultiheadAttention`` hands ``out_proj.weight`` to a function of its own) is found by a search of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from fairquant.errors import UserError
from fairquant.importance.positions import Window
from fairquant.models.layers import Layer, weight_parameter

CALLS: tuple[Any, ...] = (F.conv2d, F.linear)


def refusal(layer: str, got: str, allowed: str) -> UserError:
    """Return the one-line error about ``layer`` of a model that has no per-sample gradients of the kind computed."""
    return UserError(f"importance: layer {layer!r}: got {got}; allowed for per-sample gradients: {allowed}")


@dataclass
class Call:
    """One use of a layer: its name, its input while that is needed, and the window of a convolution."""

    layer: str
    value: Tensor
    version: int
    window: Window | None

    def take(self, *, keep: bool) -> Tensor:
        """Return the input, for the last time unless ``keep``; raises ``UserError`` where it was changed since."""
        value = self.value
        if value._version != self.version:
            raise refusal(self.layer, "an input changed in place after the layer read it", "inputs left as they are")
        if not keep:
            self.value = value.new_empty(0)  # the graph outlives the backward pass; the input need not
        return value


class Tape(TorchFunctionMode):
    """Records, while it is entered, the calls whose weight is that of one of ``layers``.

    Attributes:
        calls: in the order they were made.
    """

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        """Prepare to recognise ``layers``, by name."""
        super().__init__()
        self.calls: list[Call] = []
        self._receive: list[
            Callable[[Call, Tensor], None]
        ] = []  # one, shared with hooks: these must not hold the graph
        self._layers = layers
        self._names = {id(weight_parameter(layer)): name for name, layer in layers.items()}
        self._computed: list[Tensor] = []  # held, so that an id stays what it means
        self._handles: list[Any] = []
        self._first: list[GradientEdge] = []
        self._sources: dict[Node, Node | None] = {}

    def __enter__(self) -> Tape:
        """Watch calls, and what parametrizations hand out as weights."""
        for name, layer in self._layers.items():
            computed: Any = getattr(layer, "parametrizations", {})
            if "weight" in computed:
                self._handles.append(computed["weight"].register_forward_hook(self._learn(name)))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *details: Any) -> None:
        """Stop watching."""
        super().__exit__(*details)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def _learn(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, weight: Tensor) -> None:
            self._computed.append(weight)
            self._names[id(weight)] = name

        return hook

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Record the call if it is one of a layer."""
        kwargs = kwargs or {}
        if func not in CALLS:
            return func(*args, **kwargs)
        value, weight = _inputs(*args, **kwargs)
        name = self._names.get(id(weight))
        source, output = value.grad_fn, func(*args, **kwargs)
        if name is not None and output.requires_grad:
            window = _window(*args, **kwargs) if func is F.conv2d else None
            self._record(Call(name, value, value._version, window), output, source)
        return output

    def _record(self, call: Call, output: Tensor, source: Node | None) -> None:
        if call.value.ndim != 4 if call.window else call.value.ndim < 2:
            shape = tuple(call.value.shape)
            raise refusal(call.layer, f"an input of shape {shape}", "samples along the first dimension")
        base = output._base  # a linear layer gives a view; what is done in place to that happens to its base
        whole = output if base is None or base.numel() != output.numel() else base
        edge = get_gradient_edge(whole)
        receivers = self._receive
        whole.register_hook(lambda delta: receivers[0](call, delta))  # type: ignore[no-untyped-call]
        self.calls.append(call)
        self._sources[edge.node] = source
        if not call.value.requires_grad:
            self._first.append(edge)

    def require_no_other_use(self, losses: Tensor) -> None:
        """Raise ``UserError`` naming a layer whose weight ``losses`` depend on by another way than recorded calls."""
        names = {id(weight_parameter(layer)): name for name, layer in self._layers.items()}
        waiting: list[Any] = [losses.grad_fn]
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            name = names.get(id(getattr(node, "variable", None)))
            if name is not None:
                got = "a weight used outside conv2d and linear, or changed on the way there"
                raise refusal(name, got, "weights that these read as they are stored or parametrized")
            # From a call go on at its input: what lies between is the layer's own.
            following = [self._sources[node]] if node in self._sources else [after for after, _ in node.next_functions]
            new = {after for after in following if after is not None} - seen
            seen |= new
            waiting.extend(new)

    def backward(self, losses: Tensor, receive: Callable[[Call, Tensor], None], *, keep: bool = False) -> None:
        """Hand (call, gradient of the sum of ``losses`` at its output) to ``receive``, from the last call to the first.

        Calls that ``losses`` do not depend on are left out. Only gradients that lead to another call's output are
        computed, none of weights. ``keep`` keeps the graph for another pass.
        """
        self._receive[:] = [receive]
        torch.autograd.grad(losses.sum(), self._first, retain_graph=keep, allow_unused=True)


def _inputs(input: Tensor, weight: Tensor, *others: Any, **named: Any) -> tuple[Tensor, Tensor]:  # noqa: A002
    return input, weight


def _window(input: Tensor, weight: Tensor, *others: Any, **named: Any) -> Window:  # noqa: A002
    return Window.of(weight, *others, **named)
