"""The section ``parallel`` of params.yaml: how many processes work on one stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fairquant.config.base import Int, Section, number


class ParallelSection(Section):
    """Processes of pretrain, baseline, importance, quantize and evaluate."""

    devices: Annotated[Int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        1, description="a whole number in [1, 1024], or auto (every GPU of a node; one process on the CPU)"
    )
    nodes: Int = number(1, ge=1, le=4096)
    strategy: Literal["ddp", "ddp_bf16"] = "ddp"
    batch_norm: Literal["global", "local"] = "global"
