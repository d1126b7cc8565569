"""The sections of params.yaml. One section per stage, plus the scalars people sweep at top level."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from fairquant import plugins
from fairquant.config import rules
from fairquant.config.base import Int, Names, Real, Section, Subset, number, plugin_name
from fairquant.config.export import ExportSection
from fairquant.config.parallel import ParallelSection
from fairquant.config.quantization import (
    ActivationSection,
    BaqSection,
    CalibrationSection,
    CodebookSection,
    DistillSection,
    HybridSection,
    IterativeSection,
)

WEIGHTS_FOLDER = PurePosixPath("data/weights")

PluginOptions = dict[str, dict[str, Any]]
"""Settings of plug-ins by plug-in name; validated against each plug-in's ``Options``."""


class DataSection(Section):
    """Which images, labels and groups, and how they are split."""

    name: Annotated[str, plugin_name("dataset")] = "synthderm"
    path: str = "data/raw"
    image_size: Int = number(32, ge=8, le=1024)
    label: str | None = Field(None, description="a label column of the data set, or null for its default")
    group: Annotated[Names, Field(min_length=1)] | None = Field(
        None, description="one or several group columns, or null for the default"
    )
    split_by: str | None = Field(None, description="a column whose equal values stay on one side, or null")
    min_group_size: Int = number(1, ge=1)
    small_groups: Literal["error", "merge", "drop"] = "error"
    download: bool = True
    val_fraction: Real = number(0.1, gt=0, lt=1)
    test_fraction: Real = number(0.2, gt=0, lt=1)
    train_subset: Subset = Field(1.0, description="a fraction in (0, 1] or a whole number above 1")
    test_subset: Subset = Field(1.0, description="a fraction in (0, 1] or a whole number above 1")
    bad_rows: Literal["error", "drop"] = "error"
    seed: Int = number(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _fractions_leave_a_training_set(self) -> DataSection:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"data.val_fraction + data.test_fraction: got {self.val_fraction:g} + {self.test_fraction:g}; "
                "allowed: a sum below 1"
            )
        return self


class ModelSection(Section):
    """The classifier's architecture and where its starting weights come from."""

    name: str = Field("resnet18", min_length=1, description="a model name of torchvision, timm or docs/models.md")
    weights: str = Field("none", min_length=1, description="none | imagenet | a path to a state dict")
    strict: bool = True

    @field_validator("weights")
    @classmethod
    def _weights_are_tracked(cls, value: str) -> str:
        """A file elsewhere could change without DVC noticing, so imports come from the folder pretrain depends on."""
        path = PurePosixPath(value)
        inside = WEIGHTS_FOLDER in path.parents and ".." not in path.parts
        if value not in {"none", "imagenet"} and not inside:
            raise ValueError(f"none | imagenet | a file under {WEIGHTS_FOLDER}/ (copy it there, so that it is tracked)")
        return value


class TrainSection(Section):
    """Settings of one training run; used by pretrain and, for fine-tuning, by quantize."""

    epochs: Int = number(10, ge=0)
    batch_size: Int = number(64, ge=2)
    lr: Real = number(1e-3, gt=0)
    weight_decay: Real = number(1e-2, ge=0)
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    step_size: Int = number(5, ge=1)
    gamma: Real = number(0.1, gt=0, le=1)
    class_weights: Literal["none", "balanced"] = "none"
    patience: Int = number(0, ge=0)
    augment: Literal["off", "light", "paper"] = "light"


class ImportanceSection(Section):
    """Which samples every weight's importance is measured on."""

    by: Literal["group", "class"] = "group"
    normalize: Literal["sample", "none"] = "sample"
    batch_size: Int = number(64, ge=1)
    samples_per_group: Int | None = number(None, ge=1)
    metrics: PluginOptions = {}


def _width(value: int) -> int:
    if 16 < value < 32:
        raise ValueError(WIDTHS)
    return value


WIDTHS = "a bit-width: a whole number in [0, 16], or 32"
Width = Annotated[Int, Field(ge=0, le=32, description=WIDTHS), AfterValidator(_width)]


class ProtectSection(Section):
    """Layers held at a given width whatever the allocator would choose."""

    layers: Names = Field((), description="layer name patterns, or first | last | classifier")
    bits: Width = 32
    sensitive: Int = number(0, ge=0)
    sensitive_bits: Width = 8


class BudgetSection(Section):
    """What the quantized model may cost (allocator: optimal); null is no limit, all limits given hold at once."""

    avg_bits: Real | None = number(4.0, ge=0, le=32)
    size_mb: Real | None = number(None, gt=0)
    gbops: Real | None = number(None, gt=0)


class OptimalSection(Section):
    """allocator optimal: candidate widths, layers that share theirs, and how far from the optimum it may stop."""

    bits: tuple[Width, ...] = Field((0, 1, 2, 3, 4, 5, 6, 7, 8), min_length=1, description="a list of bit-widths")
    gap: Real = number(0.001, ge=1e-6, le=0.1)
    couple: tuple[Annotated[Names, Field(description="a list of layer name patterns")], ...] = Field(
        (), description="a list of lists of layer name patterns"
    )

    @field_validator("bits")
    @classmethod
    def _widths_differ(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        """Sort the widths; each may stand once."""
        if len(set(value)) < len(value):
            raise ValueError("each bit-width once")
        return tuple(sorted(value))


class ExplainSection(Section):
    """The curve budget → loss per group that allocator optimal draws beside its choice."""

    budgets: tuple[Annotated[Real, Field(ge=0, le=32, description="average bits in [0, 32]")], ...] = Field(
        (0.5, 1, 1.5, 2, 2.5, 3, 4, 6, 8), description="a list of average bits"
    )
    measure: bool = True


class AssignSection(Section):
    """How a bit budget is spent on the units of the model."""

    bits: tuple[Width, ...] = Field((2, 4, 8), min_length=1, description="a list of bit-widths")
    levels: tuple[Annotated[Real, Field(ge=0, le=1, description="a share in [0, 1]")], ...] = (0.2, 0.4, 0.4)
    level_unit: Literal["params", "units"] = "params"
    uniform_bits: Width = 8
    optimal: OptimalSection = OptimalSection()
    explain: ExplainSection = ExplainSection()
    protect: ProtectSection = ProtectSection()
    reducers: PluginOptions = {}

    @model_validator(mode="after")
    def _bits_and_levels_pair_up(self) -> AssignSection:
        if len(self.bits) != len(self.levels):
            raise ValueError(
                f"assign.levels: got {len(self.levels)} levels for {len(self.bits)} bits "
                f"({list(self.levels)} for {list(self.bits)}); allowed: one level per bit-width"
            )
        if len(set(self.bits)) != len(self.bits):
            raise ValueError(f"assign.bits: got {list(self.bits)}; allowed: each bit-width once")
        if abs(sum(self.levels) - 1) > 1e-6:
            raise ValueError(
                f"assign.levels: got {list(self.levels)}, sum {sum(self.levels):g}; allowed: shares that sum to 1"
            )
        return self

    @property
    def ladder(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Bits and levels, paired and sorted by bit-width."""
        pairs = sorted(zip(self.bits, self.levels, strict=True))
        return tuple(b for b, _ in pairs), tuple(share for _, share in pairs)


class QuantizeSection(TrainSection):
    """How weights are quantized and fine-tuned."""

    epochs: Int = number(3, ge=1)
    lr: Real = number(1e-4, gt=0)
    weight_decay: Real = number(1e-4, ge=0)
    scale: Annotated[str, plugin_name("scale")] = "absmax"
    percentile: Real = number(99.9, gt=50, le=100)
    weight_scheme: Literal["symmetric", "asymmetric"] = "symmetric"
    uniform_bits: Width = 8
    batch_norm: Literal["keep", "fold", "fold_train"] = "keep"
    correction_images: Int = number(0, ge=0)
    fairness_loss: Annotated[str, plugin_name("loss")] = "gap"
    fairness_weight: Real = number(1.0, ge=0)
    losses: PluginOptions = {}
    distill: DistillSection = DistillSection()
    activations: ActivationSection = ActivationSection()
    calibration: CalibrationSection = CalibrationSection()
    baq: BaqSection = BaqSection()
    iterative: IterativeSection = IterativeSection()
    codebook: CodebookSection = CodebookSection()
    hybrid: HybridSection = HybridSection()


class BootstrapSection(Section):
    """Intervals of group values and gaps."""

    resamples: Int = number(1000, ge=0, le=100_000)
    confidence: Real = number(0.95, gt=0.5, lt=1)
    seed: Int = number(0, ge=0, lt=2**32)


class EvaluateSection(Section):
    """Which metrics are computed."""

    parity: bool = True
    min_group_size: Int = number(1, ge=1)
    audit: tuple[Annotated[Names, Field(description="a column, or a list of columns")], ...] = Field(
        (), description="a list of columns of the samples table, or of lists of columns for intersections"
    )
    significance: Real = number(0.05, gt=0, lt=1)
    bootstrap: BootstrapSection = BootstrapSection()
    positive_class: str | None = Field(None, description="a class name, or null for the second of two classes")
    batch_size: Int = number(128, ge=1)
    postprocess: tuple[Annotated[str, plugin_name("postprocess")], ...] = ()
    postprocessors: PluginOptions = {}

    @field_validator("audit")
    @classmethod
    def _groupings_differ(cls, value: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        """Each grouping has a name of its own, and an intersection is one of different columns."""
        if any(not names or len(set(names)) < len(names) for names in value) or len(set(value)) < len(value):
            raise ValueError("each grouping once, of one or several different columns")
        return value


class GatesSection(Section):
    """What the quantized model must satisfy; null switches a gate off. Shares and differences of them, in [0, 1]."""

    overall_drop: Real | None = number(None, ge=0, le=1)
    worst_group_drop: Real | None = number(None, ge=0, le=1)
    group_drop: Real | None = number(None, ge=0, le=1)
    gap: Real | None = number(None, ge=0, le=1)
    gap_increase: Real | None = number(None, ge=0, le=1)
    size_mb: Real | None = number(None, gt=0)
    harmed_groups: Int | None = number(None, ge=0)


class ReportSection(Section):
    """What the report is called."""

    title: str = "FairQuant report"


class Config(Section):
    """All of params.yaml, validated as a whole before any work."""

    seed: Int = number(0, ge=0, lt=2**32)
    reducer: Annotated[str, plugin_name("reducer")] = "balanced"
    importance_metric: Annotated[str, plugin_name("importance")] = "grape"
    allocator: Annotated[str, plugin_name("allocator")] = "levels"
    granularity: Literal["per_tensor", "per_channel", "per_param"] = "per_channel"
    quant_mode: Annotated[str, plugin_name("mode")] = "fair_static_qat"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    debug: bool = False
    workers: Int = number(0, ge=0, le=256)

    parallel: ParallelSection = ParallelSection()
    data: DataSection = DataSection()
    datasets: PluginOptions = {}
    model: ModelSection = ModelSection()
    pretrain: TrainSection = TrainSection()
    importance: ImportanceSection = ImportanceSection()
    budget: BudgetSection = BudgetSection()
    assign: AssignSection = AssignSection()
    quantize: QuantizeSection = QuantizeSection()
    evaluate: EvaluateSection = EvaluateSection()
    gates: GatesSection = GatesSection()
    export: ExportSection = ExportSection()
    report: ReportSection = ReportSection()

    @model_validator(mode="after")
    def _mode_fits_the_rest(self) -> Config:
        rules.check(self)
        return self

    def options(self, kind: str, name: str) -> Any:
        """Return the validated ``Options`` of plug-in ``name`` (its defaults where params.yaml is silent)."""
        given: Mapping[str, PluginOptions] = {
            "dataset": self.datasets,
            "reducer": self.assign.reducers,
            "importance": self.importance.metrics,
            "loss": self.quantize.losses,
            "postprocess": self.evaluate.postprocessors,
        }
        return plugins.load(kind, name).Options(**given.get(kind, {}).get(name, {}))
