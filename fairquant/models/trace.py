"""The computation of a model as a graph: which module or function feeds which.

torch.fx runs ``forward`` with stand-ins for tensors. Modules without children are nodes as they are, and so are
quantizable layers, batch norm and torch's own attention; what stands between them is followed, so that the sum of a
residual block is a node, too. Python branches are taken as they are in evaluation mode; a flag that says whether the
model trains (``dropout(x, p, self.training)``) stays a flag.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fairquant.errors import UserError
from fairquant.models.layers import Layer

CONSTANT = "_tensor_constant"
"""How torch.fx begins the names of tensors that a forward makes out of nothing."""


class Traced(fx.GraphModule):
    """A graph around the submodules, parameters and buffers of the model it was traced from.

    They are the model's own, under their own names and in their own order, used by the graph or not: the state dict is
    that of the model. Constants of the graph are buffers outside the state dict.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str = "Traced") -> None:
        """Take everything that ``root`` holds; ``graph`` refers to it by name."""
        super().__init__(root, graph, class_name)
        constants = {
            name: value
            for name, value in self._buffers.items()
            if name not in root._buffers and name not in root._modules
        }
        self._parameters, self._modules = root._parameters.copy(), root._modules.copy()
        self._buffers = root._buffers.copy()
        self._non_persistent_buffers_set = set(root._non_persistent_buffers_set)
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Traced:
        """Copy the model and the graph."""
        held = {name: value for name, value in self.__dict__.items() if name not in {"_graph", "_code"}}
        root = nn.Module()
        root.__dict__.update(copy.deepcopy(held, memo))
        result = Traced(root, copy.deepcopy(self.graph), type(self).__name__)
        result.__dict__.update(root.__dict__)
        memo[id(self)] = result
        return result


class _Tracer(fx.Tracer):
    """Follows a model down to its smallest modules."""

    proxy_buffer_attributes = True  # what is computed from a buffer is computed from it at every call

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Stop at what is one operation to us."""
        whole = isinstance(m, (Layer, _BatchNorm, nn.MultiheadAttention))
        return whole or not any(True for _ in m.children()) and not isinstance(m, nn.Sequential)


def trace(model: nn.Module) -> Traced:
    """Return ``model`` as a graph module that shares its submodules, parameters and buffers by the same names.

    A graph module keeps its graph (a copy of it). Raises ``UserError`` for a model whose forward cannot be followed:
    one that branches on the values of tensors, or computes something else while training.
    """
    if isinstance(model, fx.GraphModule):
        return Traced(model, copy.deepcopy(model.graph), type(model).__name__)
    modes = {module: module.training for module in model.modules()}
    try:
        training, _ = _follow(model.train())
        graph, constants = _follow(model.eval())
        _keep_flags(graph, training)
    except Exception as error:  # whatever a forward does with a stand-in; torch.fx names no common class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model.name: got {type(model).__name__}, whose forward cannot be followed ({reason}); allowed: a model "
            "without branches on values, or settings that need no graph (quantize.activations.points: layers, "
            "quantize.batch_norm: keep)"
        ) from None
    finally:
        for module, mode in modes.items():
            module.training = mode
    holder = copy.copy(model)
    holder.__dict__ = model.__dict__ | constants
    return Traced(holder, graph, class_name=type(model).__name__)


def _follow(model: nn.Module) -> tuple[fx.Graph, dict[str, Tensor]]:
    """Return the graph of ``model`` in its present mode, and its constants, which torch.fx leaves on the model."""
    before = set(model.__dict__)
    try:
        graph = _Tracer().trace(model)
    finally:
        made = [name for name in model.__dict__ if name not in before and name.startswith(CONSTANT)]
        constants = {name: model.__dict__.pop(name) for name in made}
    return graph, constants


def _keep_flags(graph: fx.Graph, training: fx.Graph) -> None:
    """Let ``graph`` read the model's mode wherever the graph in training mode has True for its False."""
    if [(node.op, node.target) for node in graph.nodes] != [(node.op, node.target) for node in training.nodes]:
        raise ValueError("it takes another way in training mode")
    for node, other in list(zip(graph.nodes, training.nodes, strict=True)):
        args, kwargs = (
            _with_flags(graph, node, *pair) for pair in ((node.args, other.args), (node.kwargs, other.kwargs))
        )
        node.args, node.kwargs = args, kwargs


def _with_flags(graph: fx.Graph, node: fx.Node, here: Any, there: Any) -> Any:
    """Return the arguments ``here`` of ``node``, with the model's mode for flags that are True ``there``."""
    if isinstance(here, fx.Node) and isinstance(there, fx.Node) and here.name == there.name:
        return here
    if isinstance(here, (tuple, list)) and type(here) is type(there) and len(here) == len(there):
        return type(here)(_with_flags(graph, node, *pair) for pair in zip(here, there, strict=True))
    if isinstance(here, dict) and isinstance(there, dict) and here.keys() == there.keys():
        return {key: _with_flags(graph, node, here[key], there[key]) for key in here}
    if isinstance(here, slice) and isinstance(there, slice):
        ends = [_with_flags(graph, node, *pair) for pair in zip(_ends(here), _ends(there), strict=True)]
        return slice(*ends)
    if here is False and there is True:
        with graph.inserting_before(node):
            return graph.create_node("get_attr", "training")
    if here != there:
        raise ValueError(f"{node.name} takes {there} in place of {here} in training mode")
    return here


def _ends(piece: slice) -> tuple[Any, Any, Any]:
    return piece.start, piece.stop, piece.step
