"""What a mode is given and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fairquant.train.history import History

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fairquant.allocate.bitmap import BitMap
    from fairquant.config.schema import ProtectSection, QuantizeSection
    from fairquant.data.store import Store


@dataclass(frozen=True)
class QuantizeJob:
    """Everything a mode may use.

    Attributes:
        model: full precision, as pretrained.
        store: prepared data; modes train on ``train`` and select on ``val``.
        bits: widths as assigned.
        section: scale method, uniform width, fine-tuning and fairness settings.
        seed: of every random draw.
        device: where to train.
        precision: fp32 | bf16.
        protect: layers held at a width of their own, for modes that do not take ``bits``.
        roles: first | last | classifier → layer name.
        checkpoint_dir: where a training run is saved and resumed from, or None.
        debug: train one epoch only.
    """

    model: nn.Module
    store: Store
    bits: BitMap
    section: QuantizeSection
    seed: int
    device: torch.device
    precision: str
    protect: ProtectSection
    roles: Mapping[str, str]
    checkpoint_dir: Path | None = None
    debug: bool = False


@dataclass(frozen=True)
class QuantizeResult:
    """``model`` with quantizers attached, in evaluation mode, and its training history (no rows if untrained)."""

    model: nn.Module
    history: History
