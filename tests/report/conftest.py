"""A finished run's small results, written as the stages write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairquant.config import Config
from fairquant.report.inputs import ReportInputs, plain_params, read_inputs

ACCURACY = {"female × <60": (40, 0.9, 0.875), "female × ≥60": (20, 0.85, 0.7), "male|$x_1$": (60, 0.8, 0.8)}
P_VALUES = {"female × <60": 1.0, "female × ≥60": 0.0234, "male|$x_1$": 1.0}

CURVE = (
    "epoch,lr,train_loss,val_loss,val_accuracy,val_worst_group_accuracy,val_accuracy male\n"
    "1,0.001,0.69,0.7,0.5,0.4,0.4\n2,0.0005,0.5,0.55,0.75,0.7,0.7\n"
)

PARETO_HEADER = "budget,avg_bits,packed_mb,group,predicted,measured,accuracy\n"

PARETO = PARETO_HEADER + (
    "chosen,2.0,0.5,a.x,0.001,0.02,0.75\nchosen,2.0,0.5,b|$x$,0.0005,-0.01,0.5\n"
    "1.0,0.998,0.25,a.x,0.004,0.08,0.625\n1.0,0.998,0.25,b|$x$,0.002,0.01,0.5\n"
    "4.0,4.0,1.0,a.x,0.00025,0.0,0.8125\n4.0,4.0,1.0,b|$x$,0.0001,-0.001,0.5625\n"
)

REASONS = (
    "layer,kind,parameters,bits,importance_share:a.x,importance_share:b|$x$,loss_at_1bit,loss_at_2bit,loss_at_4bit,"
    "loss:a.x,loss:b|$x$\n"
    "conv1,conv2d,432,32.0,0.5,0.25,,,,,\n"
    "layer1.0.conv1,conv2d,2304,1.5,0.25,0.75,0.004,0.001,0.0001,0.0008,0.0001\n"
    "fc,linear,128,4.0,0.25,0.0,0.02,0.005,0.0002,0.0002,0.0004\n"
)
"""The first layer is protected; by weight .75 and .25 the others' parts in the objective are .000625 and .00025."""

SHARES = {
    "2bit": {"parameters": 0.2, "channels": 0.25},
    "4bit": {"parameters": 0.4, "channels": 0.4},
    "8bit": {"parameters": 0.4, "channels": 0.35},
}


def pair(before: float, after: float) -> dict[str, float]:
    return {"before": before, "after": after, "change": after - before}


def around(before: float, after: float) -> dict[str, dict[str, float]]:
    """An interval of ± 4 points about each value, ± 5 about the change."""
    widths = {"before": 0.04, "after": 0.04, "change": 0.05}
    return {name: {"low": v - widths[name], "high": v + widths[name]} for name, v in pair(before, after).items()}


def evaluate_metrics() -> dict[str, Any]:
    """What evaluate writes without resamples, audit and gates."""
    gaps = {
        when: {"avg_minus_worst": gap, "max_minus_min": 2 * gap, "eodd": None}
        for when, gap in (("before", 0.05), ("after", 0.1))
    }
    return {
        "overall": pair(0.84, 0.81),
        "worst_group": pair(0.8, 0.7),
        "gap": gaps,
        "group": {name: {"n": n} | pair(before, after) for name, (n, before, after) in ACCURACY.items()},
        "full_precision": {"overall_acc": 0.84},
        "quantized": {"overall_acc": 0.81, "eopp1": None},
        "cost": {
            "packed_mb": 1.25,
            "fp32_mb": 7.5,
            "ratio": 6.0,
            "gbops": 3.5,
            "avg_bits": {"by_parameter": 4.8, "by_channel": 4.5},
        },  # fmt: skip
    }


def full_metrics() -> dict[str, Any]:
    """What evaluate writes with everything on: flips, intervals, tests, excessive loss, audit and gates."""
    metrics = evaluate_metrics()
    for name, flips in zip(ACCURACY, (1, 3, 2), strict=True):
        metrics["group"][name]["flips"] = flips
    metrics["flips"] = {"count": 6, "share": 0.05}
    undefined = {"low": None, "high": None}
    metrics["interval"] = {
        "overall": around(0.84, 0.81),
        "worst_group": around(0.8, 0.7),
        "gap": {
            "avg_minus_worst": around(0.05, 0.1),
            "max_minus_min": around(0.1, 0.2),
            "eodd": dict.fromkeys(("before", "after", "change"), undefined),
        },
        "group": {name: around(before, after) for name, (_, before, after) in ACCURACY.items()},
    }
    metrics["harm"] = {
        name: {"n": n, "lost": 3, "won": 1, "change": after - before, "p_value": P_VALUES[name] / 3,
               "p_holm": P_VALUES[name], "harmed": P_VALUES[name] < 0.05}
        for name, (n, before, after) in ACCURACY.items()
    }  # fmt: skip
    metrics["harmed_groups"] = 1
    metrics["excessive_loss"] = {"group": dict(zip(ACCURACY, (0.01, 0.25, -0.00001), strict=True)), "phi": 0.25001}
    return metrics


def bits_metrics() -> dict[str, Any]:
    return {
        "avg_bits": {"by_parameter": 5.2, "by_channel": 4.9},
        "size": {"packed_mb": 1.4, "weights_mb": 1.3, "fp32_mb": 7.5, "ratio": 5.4},
        "gbops": 3.75,
        "share": SHARES,
    }


def predicted_metrics() -> dict[str, Any]:
    """What assign writes of widths that were predicted; keys are the names fit for a metrics file."""
    return {
        "objective": 0.000875,
        "bound": 0.000874,
        "gap": 0.00114,
        "loss": {"a·x": 0.001, "b|$x$": 0.0005},
        "weight": {"a·x": 0.75, "b|$x$": 0.25},
        "price": {"avg_bits": 0.0012, "gbops": 0.0},
    }


def quantize_metrics() -> dict[str, Any]:
    return {
        "best_epoch": 2,
        "val_accuracy": 0.8,
        "val_worst_group_accuracy": 0.7,
        "bits": {"assigned": 5.2, "final": 4.8, "changed": 0.125},
        "share": {"3bit": {"parameters": 0.5, "channels": 0.6}, "8bit": {"parameters": 0.5, "channels": 0.4}},
    }


SMALLEST_EXPORT = {
    "provenance": "ab" * 32,
    "size": {"packed_mb": 1.251, "onnx_mb": 1.5, "computed_mb": 1.25, "weights_mb": 1.2, "fp32_mb": 7.5},
}
"""What export writes of a run whose files were tried nowhere, without gates."""


def ran(agreement: float, difference: float, third: float) -> dict[str, Any]:
    """The parity of one runtime that gives the last group another accuracy, ``third``."""
    groups = {
        name: {"n": n, "agreement": agreement, "max_logit_difference": difference, "simulation": after,
               "runtime": after if number < 2 else third}
        for number, (name, (n, _, after)) in enumerate(ACCURACY.items())
    }  # fmt: skip
    return {
        "n": 120,
        "agreement": agreement,
        "max_logit_difference": difference,
        "overall": {"simulation": 0.81, "runtime": 0.805},
        "worst_group": {"simulation": 0.7, "runtime": 0.7},
        "gap": {"simulation": 0.2, "runtime": 0.175},
        "group": groups,
    }


def export_metrics() -> dict[str, Any]:
    """What export writes with everything on."""
    times = {"torch_fp32": 30.0, "onnxruntime_fp32": 20.0, "onnxruntime": 5.0, "openvino": 2.5}
    batches = {
        batch: {name: {"median_ms": factor * ms, "p95_ms": 2 * factor * ms} for name, ms in times.items()}
        for batch, factor in (("16", 10), ("1", 1))
    }
    return {
        **SMALLEST_EXPORT,
        "form": {"integer_layers": 2, "float_layers": 1, "activations": "static", "activation_bits": 8},
        "parity": {
            "packed": ran(1.0, 0.0, 0.8),
            "onnxruntime": ran(0.99166667, 0.03125, 0.7875),
            "openvino": ran(0.975, 0.25, 0.76),
        },
        "integer": {"n": 64, "agreement": 1.0, "equal": 0.984375, "max_logit_difference": 0.0625},
        "latency": {"threads": 1, "runs": 50, "image_size": 32, "batch": batches},
        "gates": {"passed": False, "gate": {"disagreement": {"value": 0.025, "limit": 0.01, "passed": False}}},
    }


def data_description() -> dict[str, Any]:
    counts = {"train": 3, "val": 1, "test": 1}
    return {
        "source": "folder|<x>",
        "seed": 3,
        "classes": ["be_nign", "<b>mal*</b>"],
        "groups": list(ACCURACY),
        "group_columns": ["sex", "age_group"],
        "merged_groups": [],
        "split_source": "drawn",
        "samples": 600,
        "splits": {split: {name: k * n for name, (n, _, _) in ACCURACY.items()} for split, k in counts.items()},
        "class_counts": {split: {"be_nign": 70 * k, "<b>mal*</b>": 50 * k} for split, k in counts.items()},
        "dropped": {},
        "notes": {},
        "checksum": "cd" * 32,
    }


def model_description() -> dict[str, Any]:
    return {
        "spec": {"name": "test_net", "classes": ["be_nign", "<b>mal*</b>"], "image_size": 32, "in_channels": 3,
                 "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
        "layers": {"conv1": {}, "layer1.0.conv1": {}, "fc": {}},
        "macs": {"conv1": 1000, "layer1.0.conv1": 2000, "fc": 128},
        "parameters": {"total": 2900, "quantizable": 2864, "rest": 36},
        "checksum": "ef" * 32,
    }  # fmt: skip


def texts() -> dict[str, str]:
    return {
        "metrics/pretrain.json": json.dumps({"val": {"accuracy": 0.75}, "best_epoch": 2}),
        "metrics/baseline.json": json.dumps({"test": {"overall_acc": 0.84}}),
        "metrics/bits.json": json.dumps(bits_metrics()),
        "metrics/quantize.json": json.dumps(quantize_metrics()),
        "metrics/evaluate.json": json.dumps(evaluate_metrics()),
        "metrics/export.json": json.dumps(SMALLEST_EXPORT),
        "data/prepared/meta.json": json.dumps(data_description()),
        "models/pretrained.json": json.dumps(model_description()),
        "plots/bits/layers.csv": "layer,bits,share_2bit,share_4bit,share_8bit\n"
        "conv1,8.0,0.0,0.0,1.0\nlayer1.0.conv1,4.0,0.5,0.25,0.25\nfc,4.0,0.0,1.0,0.0\n",
        "plots/bits/bit_distribution.csv": "layer,kind,parameters,units,n_2bit,n_4bit,n_8bit,avg_bits\n"
        "conv1,conv2d,432,16,0,0,16,8.0\nlayer1.0.conv1,conv2d,2304,16,8,4,4,4.0\nfc,linear,128,2,0,2,0,4.0\n",
        "plots/bits/bits.csv": "layer,kind,parameters,bits,importance_share:a,importance_share:b\n"
        "conv1,conv2d,432,8.0,0.5,0.25\nlayer1.0.conv1,conv2d,2304,4.0,0.25,0.75\nfc,linear,128,4.0,0.25,0.0\n",
        "plots/bits/pareto.csv": PARETO_HEADER,
        "plots/quantize/layers.csv": "layer,bits,share_3bit,share_8bit\n"
        "conv1,8.0,0.0,1.0\nlayer1.0.conv1,4.25,0.75,0.25\nfc,3.0,1.0,0.0\n",
        "plots/quantize/bit_distribution.csv": "layer,kind,parameters,units,n_3bit,n_8bit,avg_bits\n"
        "conv1,conv2d,432,16,0,16,8.0\nlayer1.0.conv1,conv2d,2304,16,12,4,4.25\nfc,linear,128,2,2,0,3.0\n",
        "plots/pretrain/curve.csv": CURVE,
        "plots/pretrain/training.log": "epoch 1: ...\nkept epoch 2\n",
        "plots/quantize/curve.csv": CURVE.splitlines()[0] + "\n",
        "plots/quantize/training.log": "nothing was trained\n",
    }


def write_run(root: Path) -> Path:
    """Write metrics/ and plots/ of a small run under ``root``."""
    for name, content in texts().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    return root


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Return a folder that holds a finished run's results."""
    return write_run(tmp_path / "run")


@pytest.fixture
def inputs(run_folder: Path) -> ReportInputs:
    """Return the parsed results of a run without intervals, tests, audit and gates."""
    return read_inputs(plain_params(Config()), run_folder)


@pytest.fixture
def spent_inputs(run_folder: Path) -> ReportInputs:
    """Return the parsed results of a run that spent a budget: 2 bits per weight, measured."""
    accuracy = {"a·x": {"accuracy": 0.8125}, "b|$x$": {"accuracy": 0.6}}
    changed = {
        "metrics/baseline.json": json.dumps({"val": {"group": accuracy}}),
        "metrics/bits.json": json.dumps(bits_metrics() | {"predicted": predicted_metrics()}),
        "plots/bits/bits.csv": REASONS,
        "plots/bits/pareto.csv": PARETO,
    }
    for name, content in changed.items():
        (run_folder / name).write_text(content, encoding="utf-8")
    budget = {"avg_bits": 2.0, "gbops": 4.0}
    config = Config(allocator="optimal", reducer="max", importance_metric="fisher", budget=budget)
    return read_inputs(plain_params(config), run_folder)


@pytest.fixture
def full_inputs(run_folder: Path) -> ReportInputs:
    """Return the parsed results of a run with everything on."""
    (run_folder / "metrics/evaluate.json").write_text(json.dumps(full_metrics()), encoding="utf-8")
    (run_folder / "metrics/export.json").write_text(json.dumps(export_metrics()), encoding="utf-8")
    return read_inputs(plain_params(Config()), run_folder)
