"""The model card's caveats: what the numbers do not say, and what changes them, as far as the run itself tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fairquant.report.cells import percent
from fairquant.report.inputs import ReportInputs
from fairquant.report.shown import some
from fairquant.report.tables import group_rows

SMALL = 100
"""Groups of fewer test images are named as small: at an accuracy of 80 % one standard error is then above 4 points."""


def caveats(inputs: ReportInputs) -> list[str]:
    """Return what to keep in mind, a sentence or two each."""
    return [
        *group_sizes(inputs.metrics["evaluate"], inputs.params["evaluate"]["bootstrap"]["confidence"]),
        f"Intervals are over test images. One model was trained (seed {inputs.params['seed']}): another seed gives "
        "other numbers; how far off they are was not measured here.",
        f"All images are of {inputs.data['source']}. Images from elsewhere can be served worse, and their groups "
        "differently; nothing here tells how much.",
        *_postprocessing(inputs.params["evaluate"]["postprocess"]),
        *_widths(inputs),
        *_runtimes(inputs.metrics["export"]),
    ]


def group_sizes(evaluate: Mapping[str, Any], confidence: float) -> list[str]:
    """Return how certain the numbers of small groups are; of the least certain group where none is small."""
    rows, intervals = group_rows(evaluate), evaluate.get("interval", {}).get("group", {})
    widths = {row.name: _width(intervals.get(row.name, {}).get("after"), row.n, confidence) for row in rows if row.n}
    small = [row.name for row in rows if 0 < row.n < SMALL]
    empty = [row.name for row in rows if not row.n]
    sentences = []
    if small:
        named = some([f"{name} ({widths[name][1]})" for name in small], "; ")
        sentences.append(f"Small groups, of fewer than {SMALL} test images, whose accuracy is uncertain: {named}.")
    elif widths:
        name = max(widths, key=lambda group: widths[group][0])
        sentences.append(f"The group whose accuracy is least certain: {name} ({widths[name][1]}).")
    if empty:
        sentences.append(f"Groups without test images, of which nothing is known: {some(empty)}.")
    return sentences


def _width(ends: Mapping[str, float | None] | None, n: int, confidence: float) -> tuple[float, str]:
    """Return how uncertain a group is, and its number of images and interval in words.

    >>> _width({"low": 0.75, "high": 0.9}, 50, 0.95)[1]
    'n = 50, 95 % interval 75.0 to 90.0 %'
    >>> _width(None, 50, 0.95)[1]
    'n = 50'
    """
    low, high = (None, None) if ends is None else (ends["low"], ends["high"])
    if low is None or high is None:
        return n**-0.5, f"n = {n}"
    return high - low, f"n = {n}, {100 * confidence:g} % interval {percent(low)} to {percent(high)} %"


def _postprocessing(methods: Sequence[str]) -> list[str]:
    """Return that decisions by group are no part of the files, where some were measured."""
    if not methods:
        return []
    return [f"Post-processing by group ({', '.join(methods)}) was measured, see report.md; the files do not hold it."]


def _widths(inputs: ReportInputs) -> list[str]:
    """Return what widths below 8 bits save, and what they do not."""
    narrow = any(int(name.removesuffix("bit")) < 8 for name in inputs.metrics["quantize"]["share"])
    if not narrow:
        return []
    form = inputs.metrics["export"].get("form", {})
    integers = form.get("integer_layers") and form["activations"] != "fp32"
    where = "8 bits in ONNX runtimes, of full precision in torch" if integers else "full precision"
    return [
        "Widths below 8 bits save storage and download only. Weights are unpacked when a file is loaded: memory and "
        f"speed are at best those of {where}."
    ]


def _runtimes(export: Mapping[str, Any]) -> list[str]:
    """Return which settings of the runtimes the answers depend on."""
    sentences, parity = [], export.get("parity", {})
    if export.get("form", {}).get("activations", "fp32") != "fp32":
        sentences.append(
            "x86 CPUs without VNNI instructions sum 8-bit products in 16 bits, which overflows: answers can differ "
            "from those measured here. python -m fairquant.predict sets session.x64quantprecision of onnxruntime "
            "there; OpenVINO has no such setting. Measure the parity on the CPU that will be used."
        )
    if "openvino" in parity:
        sentences.append(
            "OpenVINO was run with INFERENCE_PRECISION_HINT f32; left alone it computes in bfloat16 on CPUs that can."
        )
    if "tensorrt" in parity:
        sentences.append("The file for TensorRT was run in onnxruntime, not in TensorRT on a GPU.")
    return sentences
