"""Forward passes of a process that has no rows of a batch smaller than the number of processes.

It must take part, since batch norm and observers speak with all processes, and torch computes with 0 rows like with any
number, but for one thing: in ``x.reshape(0, 49, 4, -1)`` the size left open could be any. With rows it would be what is
left of a row's elements, and that is what is put in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

RESHAPING = frozenset({torch.reshape, Tensor.reshape, Tensor.view})


class NoRows(TorchFunctionMode):
    """Fills in the open size where a tensor without elements is reshaped.

    >>> with NoRows():
    ...     torch.zeros(0, 49, 12).reshape(0, 49, 4, -1).shape
    torch.Size([0, 49, 4, 3])
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call ``func``, with no size left open if it reshapes."""
        kwargs = kwargs or {}
        if func in RESHAPING and not kwargs and len(args) > 1 and args[0].numel() == 0:
            shape = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
            return func(args[0], _filled(args[0].shape, shape)) if -1 in shape else func(*args)
        return func(*args, **kwargs)


def _filled(before: Iterable[int], after: Iterable[int]) -> list[int]:
    """Return ``after`` with its −1 replaced, where another size of it is 0; sizes of 0 stand for one row.

    >>> _filled((0, 49, 12), (0, 49, 4, -1)), _filled((0, 49, 12), (-1, 12))
    ([0, 49, 4, 3], [-1, 12])
    """
    sizes = list(after)
    if 0 not in sizes:
        return sizes
    rest = prod(size for size in before if size) // prod(size for size in sizes if size > 0)
    return [rest if size == -1 else size for size in sizes]
