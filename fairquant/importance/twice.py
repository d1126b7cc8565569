"""Forward passes whose result can be differentiated twice.

torch has no second derivative for two things classifiers are made of: fused attention kernels, and hard-sigmoid, the
gate of MobileNetV3's squeeze-and-excitation. Both have an equal form that does: attention as products and a softmax,
and hard-sigmoid(x) = ReLU6(x + 3) / 6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fairquant.errors import UserError

COMPLAINTS = ("is not implemented", "differentiate twice", "support automatic differentiation")
"""Words of torch's errors about operations, and custom functions' backward passes, that have no derivative."""


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Replace what has no second derivative by its equal form; results differ by rounding at most."""
    with sdpa_kernel(SDPBackend.MATH), _EqualForms():
        yield


@contextmanager
def refused(metric: str) -> Iterator[None]:
    """Turn torch's complaint about a missing second derivative into one line about ``metric``.

    Raises ``UserError``; other errors pass.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in COMPLAINTS):
            raise
        raise UserError(
            f"importance_metric: got {metric!r} for a model that cannot be differentiated twice "
            f"({str(error).splitlines()[0]}); allowed: a metric of first derivatives"
        ) from None


def require_graph(gradients: Iterable[Tensor]) -> None:
    """Raise ``RuntimeError`` where the graph behind ``gradients`` is cut by a ``once_differentiable`` function.

    torch marks the cut with a node that raises when it is reached. Differentiating with respect to weights never
    reaches it, so that the second derivative would lack terms without a word.
    """
    waiting: list[Any] = [gradient.grad_fn for gradient in gradients]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node.name() == "torch::autograd::Error":
            raise RuntimeError("cannot differentiate twice through a function marked @once_differentiable")
        following = {after for after, _ in node.next_functions if after is not None} - seen
        seen |= following
        waiting.extend(following)


class _EqualForms(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.hardsigmoid:
            return _hardsigmoid(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _hardsigmoid(value: Tensor, inplace: bool = False) -> Tensor:
    return F.relu6(value + 3) / 6
