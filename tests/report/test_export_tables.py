"""The tables of the exported files, against values worked out by hand; every part but the sizes may be absent."""

from __future__ import annotations

import pytest

from fairquant.report import export_tables as tables
from tests.report.conftest import SMALLEST_EXPORT, export_metrics, ran


def test_sizes():
    assert tables.size_cells(SMALLEST_EXPORT) == [
        ("file", "MB", "of the computed size", "times smaller than fp32"),
        ("packed file", "1.251", "1.001", "6.0"),
        ("ONNX file", "1.500", "1.200", "5.0"),
        ("as computed: weights, scales, width map, rest", "1.250", "1.000", "6.0"),
        ("weights at their widths alone", "1.200", "0.960", "6.2"),
        ("full precision", "7.500", "6.000", "1.0"),
    ]
    assert tables.file_bytes({"size": {"fp32_mb": 7.5}}) == [("exported file", "bytes")]
    assert tables.file_bytes({"size": {"tensorrt_mb": 0.123457}})[1:] == [("ONNX file for TensorRT", "123457")]


@pytest.mark.parametrize(
    ("activations", "words"),
    [
        ("static", "Activations are on fixed 8-bit grids: these layers compute on integers."),
        ("dynamic", "Activations are on 8-bit grids whose ranges are found in each batch."),
    ],
)
def test_form(activations, words):
    form = {"integer_layers": 2, "float_layers": 0, "activations": activations, "activation_bits": 8}
    assert tables.form_line({"form": form}) == f"2 of 2 layers hold integer weights. {words}"
    some = tables.form_line({"form": form | {"float_layers": 2, "float_names": ["conv1", "fc"]}})
    assert some == f"2 of 4 layers hold integer weights, 2 hold floats. {words} Floats: conv1, fc."


def test_form_without_quantized_activations():
    form = {"integer_layers": 0, "float_layers": 2, "float_names": ["a", "b"], "activations": "fp32"}
    words = "Activations are floats, and so is the arithmetic: weights, stored at their widths, become floats at load."
    assert tables.form_line({"form": form}) == words
    assert tables.form_line({}) == ""


def test_accuracy_side_by_side():
    assert tables.accuracy_cells(export_metrics()) == [
        ("group", "n", "simulation %", "packed file %", "onnxruntime %", "OpenVINO %"),
        ("female × <60", "40", "87.5", "87.5", "87.5", "87.5"),
        ("female × ≥60", "20", "70.0", "70.0", "70.0", "70.0"),
        ("male|$x_1$", "60", "80.0", "80.0", "78.8", "76.0"),
        ("overall", "120", "81.0", "80.5", "80.5", "80.5"),
        ("worst group", "", "70.0", "70.0", "70.0", "70.0"),
        ("accuracy gap, max − min", "", "20.0", "17.5", "17.5", "17.5"),
    ]


def test_accuracy_without_a_gap_and_of_another_simulation():
    one, other = ran(1.0, 0.0, 0.8), ran(1.0, 0.0, 0.8)
    del one["gap"], other["gap"]
    other["overall"] = {"simulation": 0.5, "runtime": 0.5}
    cells = tables.accuracy_cells({"parity": {"onnxruntime": one, "tensorrt": other}})
    head = "simulation for onnxruntime %", "simulation for TensorRT file %", "onnxruntime %", "TensorRT file %"
    assert cells[0] == ("group", "n", *head)
    assert cells[-2:] == [("overall", "120", "81.0", "50.0", "80.5", "50.0"), ("worst group", "", *["70.0"] * 4)]


def test_agreement_is_rounded_down():
    cells = tables.agreement_cells(export_metrics())
    assert cells[0][2:4] == ("same class %, packed file", "max |Δlogit|, packed file")
    assert cells[1] == ("female × <60", "40", "100.00", "0", "99.16", "0.0312", "97.50", "0.25")
    assert cells[-1] == ("all", "120", "100.00", "0", "99.16", "0.0312", "97.50", "0.25")
    assert tables.agreement_line(export_metrics()) == (
        "Same class as the simulation on 120 test images: packed file 100.00 % (largest difference of a logit 0), "
        "onnxruntime 99.16 % (largest difference of a logit 0.0312), OpenVINO 97.50 % (largest difference of a logit "
        "0.25)."
    )


def test_a_group_without_images_is_a_dash():
    found = ran(1.0, 0.0, 0.8)
    found["group"]["male|$x_1$"] = {"n": 0, **dict.fromkeys(("agreement", "max_logit_difference"))}
    found["group"]["male|$x_1$"] |= dict.fromkeys(("simulation", "runtime"))
    export = {"parity": {"onnxruntime": found}}
    assert tables.accuracy_cells(export)[3] == ("male|$x_1$", "0", "–", "–")
    assert tables.agreement_cells(export)[3] == ("male|$x_1$", "0", "–", "–")


def test_latency_by_batch_and_how_many_times_faster():
    cells = tables.latency_cells(export_metrics())
    assert cells[0] == ("model", "batch", "median ms", "p95 ms", "× torch fp32", "× same runtime, fp32")
    assert cells[1:5] == [
        ("torch, fp32", "1", "30.00", "60.00", "1.00", "1.00"),
        ("onnxruntime, fp32", "1", "20.00", "40.00", "1.50", "1.00"),
        ("onnxruntime, quantized", "1", "5.00", "10.00", "6.00", "4.00"),
        ("OpenVINO, quantized", "1", "2.50", "5.00", "12.00", "–"),
    ]
    assert cells[5] == ("torch, fp32", "16", "300.00", "600.00", "1.00", "1.00")
    assert tables.latency_line(export_metrics()).startswith(
        "One forward pass at 32 × 32 pixels on 1 thread, 50 timed runs of each model, in turn."
    )


def test_what_is_absent_has_no_table():
    for table in (tables.accuracy_cells, tables.agreement_cells, tables.latency_cells):
        assert table(SMALLEST_EXPORT) == []
    assert tables.form_line(SMALLEST_EXPORT) == tables.integer_line(SMALLEST_EXPORT) == ""
    assert tables.agreement_line(SMALLEST_EXPORT) == (
        "No exported file was run on the test split (params.yaml: export.formats, export.runtimes)."
    )
    assert tables.latency_line(SMALLEST_EXPORT) == (
        "How long a forward pass takes was not measured; `dvc exp run -S export.latency.runs=50` does it."
    )


def test_gates_of_both_stages():
    size = {"gates": {"gate": {"size_mb": {"value": 1.25, "limit": 5.0, "passed": True}}}}
    row = ("export.disagreement", "0.025", "0.01", "FAILED")
    head = ("gate", "value", "at most", "result")
    assert tables.all_gates(size, export_metrics()) == [head, ("size_mb", "1.25", "5", "passed"), row]
    assert tables.all_gates({}, export_metrics()) == [head, row]
    assert tables.all_gates(size, {}) == [head, ("size_mb", "1.25", "5", "passed")]
    assert tables.all_gates({}, {}) == []
