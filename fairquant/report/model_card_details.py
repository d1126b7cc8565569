"""The model card's facts on the model itself: what it is, how it was trained, where it comes from, how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fairquant
from fairquant.export.metadata import RULE
from fairquant.report.classic import text
from fairquant.report.details import plain
from fairquant.report.export_tables import FILES, form_line
from fairquant.report.inputs import ReportInputs
from fairquant.report.shown import some

PATHS = {"packed_mb": "packed.safetensors", "onnx_mb": "model.onnx", "tensorrt_mb": "tensorrt.onnx"}
"""File names in models/export by key of ``size`` in metrics/export.json."""


def details(inputs: ReportInputs) -> list[str]:
    """Return what the model is, a sentence each: architecture, input, output, quantization, size."""
    spec, parameters = inputs.model["spec"], inputs.model["parameters"]
    cost, side = inputs.metrics["evaluate"]["cost"], spec["image_size"]
    mean, std = (", ".join(plain(value) for value in spec[key]) for key in ("mean", "std"))
    average = cost["avg_bits"]
    return [
        f"Architecture: {spec['name']}, an image classifier of {parameters['total']:,} parameters, of which "
        f"{parameters['quantizable']:,} in {len(inputs.model['layers'])} layers can be quantized; "
        f"{sum(inputs.model['macs'].values()):,} multiply-accumulates per image.",
        f"Input: {side} × {side} pixels, {RULE}; then (x − 255·mean) / (255·std) of x in 0…255 with mean {mean} and "
        f"std {std} per channel.",
        f"Output: one logit for each of {len(spec['classes'])} classes: {some(spec['classes'])}.",
        f"Weights: {average['by_parameter']:.2f} bits on average over weights, {average['by_channel']:.2f} over output "
        f"channels; {_widths(inputs.metrics['quantize']['share'])}. {_how(inputs.params)}",
        f"Form of the ONNX file: {form_line(inputs.metrics['export']) or 'none was exported.'}",
        f"Size: {cost['packed_mb']:.3f} MB computed, {cost['ratio']:.1f} times smaller than full precision "
        f"({cost['fp32_mb']:.3f} MB); files on disk: {_files(inputs.metrics['export']['size'])}.",
    ]


def _widths(share: Mapping[str, Mapping[str, float]]) -> str:
    """Return the share of weights at each width, narrowest first.

    >>> _widths({"8bit": {"parameters": 0.75}, "2bit": {"parameters": 0.25}})
    '25.0 % of the weights at 2 bits, 75.0 % at 8 bits'
    """
    widths = sorted(share, key=lambda name: int(name.removesuffix("bit")))
    parts = [f"{100 * share[name]['parameters']:.1f} % at {name.removesuffix('bit')} bits" for name in widths]
    return ", ".join(parts).replace(" % at", " % of the weights at", 1)


def _how(params: Mapping[str, Any]) -> str:
    settings = params["quantize"]
    return (
        f"Mode {params['quant_mode']}, allocator {params['allocator']}, granularity {params['granularity']}, "
        f"importance {params['importance_metric']}, reducer {params['reducer']}; step sizes {settings['scale']}, "
        f"{settings['weight_scheme']}."
    )


def _files(size: Mapping[str, float]) -> str:
    parts = [f"{name} {size[key]:.3f} MB" for key, name in FILES.items() if key in size]
    return ", ".join(parts) or "none were exported"


def training(inputs: ReportInputs) -> list[str]:
    """Return how the weights came about, a sentence each."""
    params = inputs.params
    first, second = params["pretrain"], params["quantize"]
    start = "random weights" if params["model"]["weights"] == "none" else f"weights {params['model']['weights']}"
    pretrained = f"Full precision: from {start}, {_settings(first)}." if first["epochs"] else (
        f"Full precision: {start}, not trained any further."
    )  # fmt: skip
    trained = len(inputs.curves["quantize"])
    tuned = f"Fine-tuning of the quantized model: {trained} epochs, {_settings(second, epochs=False)}; fairness loss "
    tuned += f"{second['fairness_loss']} with weight {plain(second['fairness_weight'])}."
    return [
        pretrained,
        tuned if trained else "The quantized model was not fine-tuned.",
        "Which epoch was kept was decided on the validation split; the test split was used for measuring alone.",
        *(["This was a debug run: a few hundred samples, one epoch."] if params["debug"] else []),
    ]


def _settings(section: Mapping[str, Any], *, epochs: bool = True) -> str:
    """Return the settings of one training in words, as params.yaml calls them."""
    names = ("batch_size", "lr", "weight_decay", "schedule", "class_weights", "augment", "patience")
    count = [f"{section['epochs']} epochs"] if epochs else []
    return ", ".join([*count, *(f"{name} {text(section[name])}" for name in names)])


def provenance(inputs: ReportInputs) -> list[str]:
    """Return what the run can be found by, a sentence each."""
    return [
        f"Quantized weights and data: sha256 {inputs.metrics['export']['provenance']} (stands in every exported file).",
        f"Prepared data: sha256 {inputs.data['checksum']} (data/prepared).",
        f"Full-precision weights: sha256 {inputs.model['checksum']} (models/pretrained.safetensors).",
        f"Seeds: {inputs.params['seed']} for training, {inputs.params['data']['seed']} for the split of the data, "
        f"{inputs.params['evaluate']['bootstrap']['seed']} for the intervals.",
        f"Software: fairquant {fairquant.__version__}; device {inputs.params['device']}, precision "
        f"{inputs.params['precision']}. Every setting and result stands in fairquant_report.txt.",
    ]


def usage(inputs: ReportInputs) -> list[str]:
    """Return how to use the files there are, in markdown."""
    size = inputs.metrics["export"]["size"]
    files = {key: f"models/export/{name}" for key, name in PATHS.items() if key in size}
    parts = []
    if "packed_mb" in files:
        parts += [
            "A torch module whose logits are those of the evaluated model:",
            f'```python\nimport fairquant\n\nmodel = fairquant.load_packed("{files["packed_mb"]}")\n```',
        ]
    for key in [key for key in ("onnx_mb", "tensorrt_mb") if key in files][:1]:
        parts += [
            "Classes and probabilities of image files, without torch; prepares images as above:",
            f"```\npython -m fairquant.predict {files[key]} images/ --out predictions.csv\n```",
        ]
    return parts or ["No file was exported (params.yaml, export.formats)."]
