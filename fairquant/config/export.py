"""The ``export`` section of params.yaml: which files are written, where they are tried, what they must satisfy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from fairquant.config.base import Int, Real, Section, number

Format = Literal["packed", "onnx", "tensorrt"]
Runtime = Literal["onnxruntime", "openvino"]


class ExportGatesSection(Section):
    """What the exported files must satisfy in every runtime they are tried in; null switches a gate off."""

    disagreement: Real | None = number(0.01, ge=0, le=1)
    logit_difference: Real | None = number(None, ge=0)


class LatencySection(Section):
    """How long one forward pass takes, measured only on request: times are not the same twice."""

    runs: Int = number(0, ge=0)
    batches: tuple[Int, ...] = Field((1, 16), description="whole numbers, each at least 1")
    threads: Int = number(1, ge=1)

    @field_validator("batches")
    @classmethod
    def _whole_batches(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1 or len(set(value)) != len(value):
            raise ValueError("different whole numbers, each at least 1")
        return value


class ExportSection(Section):
    """Which files the export stage writes, and how they are checked."""

    formats: tuple[Format, ...] = ("packed", "onnx")
    runtimes: tuple[Runtime, ...] = ("onnxruntime", "openvino")
    integer_images: Int = number(256, ge=0)
    gates: ExportGatesSection = ExportGatesSection()
    latency: LatencySection = LatencySection()

    @field_validator("formats")
    @classmethod
    def _each_format_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("one or more of packed | onnx | tensorrt, each once")
        return value

    @field_validator("runtimes")
    @classmethod
    def _each_runtime_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("onnxruntime | openvino, each once")
        return value
