"""Parts of ``quantize`` in params.yaml that belong to one way of quantizing: activations, codebooks, learned widths."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fairquant.config.base import Int, Real, Section, number, plugin_name

OFF = 32
"""The width at which activations are left alone."""


class ActivationSection(Section):
    """How activations are quantized: one grid for each tensor, its range found by an observer."""

    bits: Int | None = Field(None, ge=2, le=32, description="null, a whole number in [2, 16], or 32 (off)")
    scheme: Literal["asymmetric", "symmetric"] = "asymmetric"
    observer: Annotated[str, plugin_name("observer")] = "moving_average"
    momentum: Real = number(0.1, gt=0, le=1)
    percentile: Real = number(99.99, gt=50, le=100)
    points: Literal["all", "layers"] = "all"

    @field_validator("bits")
    @classmethod
    def _width_has_a_grid(cls, value: int | None) -> int | None:
        if value is not None and 16 < value < OFF:
            raise ValueError("null, a whole number in [2, 16], or 32 (off)")
        return value


class CalibrationSection(Section):
    """The training images on which activation ranges are found after training: how many, and of which groups."""

    batches: Int = number(16, ge=1)
    batch_size: Int = number(64, ge=1)
    sampling: Literal["random", "balanced", "worst_group"] = "random"
    worst_share: Real = number(0.5, gt=0, le=1)


class CodebookSection(Section):
    """quant_mode kmeans: how the centroids are found."""

    per: Literal["channel", "tensor"] = "tensor"
    iterations: Int = number(50, ge=1)
    tune: bool = True


class HybridSection(Section):
    """quant_mode hybrid: a low-width backbone under a classifier of its own width."""

    backbone_bits: Int = number(4, ge=0, le=16)
    classifier_bits: Int = Field(32, ge=2, le=32, description="a whole number in [2, 16], or 32")

    @field_validator("classifier_bits")
    @classmethod
    def _width_exists(cls, value: int) -> int:
        if 16 < value < OFF:
            raise ValueError("a whole number in [2, 16], or 32")
        return value


class BaqSection(Section):
    """quant_mode baq_learnable: how widths are learned."""

    bit_min: Int = number(2, ge=2, le=16)
    bit_max: Int = number(8, ge=2, le=16)
    logit_lr: Real = number(0.02, gt=0)
    regularizer: Literal["budget", "pull"] = "budget"
    target_bits: Real | None = number(None, ge=2, le=16)
    bits_weight: Real = number(0.1, ge=0)
    learn_share: Real = number(0.5, gt=0, le=1)

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> BaqSection:
        if self.bit_min > self.bit_max:
            raise ValueError(
                f"quantize.baq.bit_min: got {self.bit_min} above bit_max {self.bit_max}; allowed: at most bit_max"
            )
        target = self.target_bits
        if target is not None and not self.bit_min <= target <= self.bit_max:
            raise ValueError(
                f"quantize.baq.target_bits: got {target:g}; "
                f"allowed: null, or a number from bit_min {self.bit_min} to bit_max {self.bit_max}"
            )
        return self


class IterativeSection(Section):
    """quant_mode iterative_qat: in how many rounds units are frozen."""

    rounds: Int = number(2, ge=1)


class DistillSection(Section):
    """Distillation from the full-precision model while fine-tuning; weight 0 is none."""

    weight: Real = number(0.0, ge=0)
    temperature: Real = number(2.0, gt=0)
