"""A packed file as something that predicts: the torch module it stands for. The only part that needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fairquant.errors import UserError
from fairquant.export.metadata import ModelMetadata

if TYPE_CHECKING:
    from torch import nn


class TorchRuntime:
    """A ``fairquant.export.runtimes.Runtime`` that runs a torch module on the CPU."""

    def __init__(self, model: nn.Module) -> None:
        """Take ``model``, images float32 (B, 3, H, W) → logits (B, C)."""
        self.model = model.eval()

    def run(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return logits (B, C) of normalised ``images`` (B, 3, H, W), float32 both."""
        import torch

        with torch.inference_mode():
            inputs = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
            logits: npt.NDArray[np.float32] = self.model(inputs).float().numpy()
        return logits


def open_packed(path: str | Path, *, threads: int) -> tuple[ModelMetadata, TorchRuntime]:
    """Return what a packed file says of itself, and the model; ``threads`` holds for torch in this process.

    Raises:
        UserError: torch is not installed.
        ArtifactError: the file is missing, damaged, or no packed file.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError(
            f"{path}: got a packed file, which needs torch, and torch is not installed; allowed here: a model.onnx"
        ) from None
    from fairquant.export.packed import read_packed

    packed = read_packed(path)
    torch.set_num_threads(threads)
    return packed.metadata, TorchRuntime(packed.model)
