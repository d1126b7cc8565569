"""Integer-exact simulation of a QDQ ONNX file: a second, independent definition of what the file means.

    session = IntegerSession("model.onnx")
    logits = session.run(images)          # float32 (B, 3, H, W) → float32 (B, classes)

Convolutions, matrix products, residual sums and averages between quantized tensors are computed in whole numbers with
explicit requantization. Which nodes that are is decided from the QDQ graph by the rules in
``fairquant.export.arithmetic.graph`` and ``fairquant.export.arithmetic.plan``; the arithmetic stands in
``fairquant.export.arithmetic.ops``; everything else is float32 (``…arithmetic.floats``). Where a network
is quantized throughout, every code equals onnxruntime's on CPU bit for bit; where floating operators such as softmax or
layer norm stand between, a value near the border of two codes can fall to either side.

What is simulated is the exact arithmetic. A CPU without 8-bit dot product instructions (VNNI, or its like) computes
unsigned × signed products in pairs whose sum saturates at 16 bits; there onnxruntime differs from what the file says,
and from this.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from fairquant.errors import UserError
from fairquant.export.arithmetic.graph import read_graph
from fairquant.export.arithmetic.plan import last_reads, plan


class IntegerSession:
    """One QDQ ONNX file, ready to run.

    Attributes:
        steps: the computations in order; ``kind`` begins with Q where they are in whole numbers.
    """

    def __init__(self, model: str | Path | onnx.ModelProto) -> None:
        """Read the file; ``UserError`` for one that does not exist, is no ONNX file or holds what is not supported."""
        graph = read_graph(model if isinstance(model, onnx.ModelProto) else _load(Path(model)))
        self.steps = plan(graph)
        self._image, self._logits = graph.image, graph.logits
        read = {name for step in self.steps for name in step.inputs}
        self._constants = {name: _tensor(graph.constants[name]) for name in sorted(read & graph.constants.keys())}
        self._freed = last_reads(self.steps, graph.logits)

    def run(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the logits, float32 (B, classes), of ``images``, float32 (B, 3, H, W), as the file takes them in."""
        return self.tensors(images, [self._logits])[0]

    @torch.no_grad()
    def tensors(self, images: npt.NDArray[np.float32], names: list[str]) -> list[npt.NDArray[Any]]:
        """Return the tensors called ``names``, as the file calls them, at ``images``: for finding differences.

        Raises ``UserError`` for images that are not float32 of four dimensions, and names not computed here.
        """
        if images.dtype != np.float32 or images.ndim != 4:
            raise UserError(f"images: got {images.dtype} of shape {[*images.shape]}; allowed: float32 (B, 3, H, W)")
        known: dict[str, Tensor | None] = {**self._constants, "": None, self._image: _tensor(images)}
        found: dict[str, Tensor] = {}
        for step, freed in zip(self.steps, self._freed, strict=True):
            computed = step.run(*(known[name] for name in step.inputs))
            several = computed if isinstance(computed, tuple) else (computed,)
            fresh = dict(zip(step.outputs, several, strict=False))
            known.update(fresh)
            found.update({name: tensor for name, tensor in fresh.items() if name in names})
            for name in freed:
                if name:
                    del known[name]
        if missing := [name for name in names if name not in found]:
            raise UserError(f"tensor: got {missing[0]}; allowed: one that is computed")
        return [found[name].numpy() for name in names]


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(values))


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: got no such file; allowed: an ONNX file") from None
    except Exception as error:  # protobuf raises its own DecodeError, whose module moved between versions
        raise UserError(f"{path}: got {type(error).__name__}; allowed: an ONNX file") from None
