"""What a mode is given and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fairquant.config.parallel import ParallelSection
from fairquant.train.history import History

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fairquant.allocate.bitmap import BitMap
    from fairquant.allocate.units import Units
    from fairquant.config import Config
    from fairquant.config.schema import ProtectSection, QuantizeSection
    from fairquant.data.store import Store


class Ranking(Protocol):
    """Measures the importance of a model's units as the importance and assign stages do."""

    key: Mapping[str, object]
    """Every setting it depends on, JSON-like."""

    def __call__(self, model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Units:
        """Return the units of the layers in ``shapes`` with their current importance."""
        ...


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
        ranking: measures the importance of a model's units anew, for modes that do.
        parallel: what several processes do with gradients and batch norm.
        compile_model: whether training is compiled.
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
    ranking: Ranking | None = None
    parallel: ParallelSection = ParallelSection()
    compile_model: bool = False

    @classmethod
    def of(
        cls, config: Config, *, model: nn.Module, store: Store, bits: BitMap, roles: Mapping[str, str]
    ) -> QuantizeJob:
        """Return the job that ``config`` describes; killed runs are resumed below the project's root."""
        from fairquant.devices import resolve_device
        from fairquant.modes._ranking import UnitRanking
        from fairquant.train import checkpoint

        device = resolve_device(config.device)
        return cls(
            model=model,
            store=store,
            bits=bits,
            section=config.quantize,
            seed=config.seed,
            device=device,
            precision=config.precision,
            protect=config.assign.protect,
            roles=roles,
            checkpoint_dir=checkpoint.root(),
            debug=config.debug,
            ranking=UnitRanking(config, store, device),
            parallel=config.parallel,
            compile_model=config.compile,
        )

    @property
    def training(self) -> QuantizeSection:
        """The section with the number of epochs that are trained."""
        return self.section.model_copy(update={"epochs": 1}) if self.debug else self.section


@dataclass(frozen=True)
class QuantizeResult:
    """``model`` with quantizers attached, in evaluation mode, and its training history (no rows if untrained)."""

    model: nn.Module
    history: History
