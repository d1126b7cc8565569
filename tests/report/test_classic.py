"""The files of the published code."""

from __future__ import annotations

import csv
import dataclasses

from fairquant.report import classic


def test_every_parameter_and_result_is_in_the_report(full_inputs):
    lines = classic.fairquant_report(full_inputs).splitlines()
    for key, value in classic.flatten(full_inputs.params):
        assert f"  {key} = {classic.text(value)}" in lines
    for stage, metrics in full_inputs.metrics.items():
        assert f"Results of {stage}" in lines
        for key, value in classic.flatten(metrics):
            assert f"  {key} = {classic.text(value)}" in lines
    assert "  group.female × ≥60.after = 0.7" in lines
    assert "  quantized.eopp1 = null" in lines
    assert "  quantize.lr = 0.0001" in lines
    assert "  assign.levels = [0.2, 0.4, 0.4]" in lines
    assert "  assign.reducers.balanced = {}" in lines
    assert "  evaluate.audit = []" in lines
    assert "  gates.size_mb = null" in lines


def test_every_table_is_in_the_report(inputs, full_inputs):
    text = classic.fairquant_report(full_inputs)
    for heading in ("Groups (test split)", "Gaps between groups", "Excessive loss (nats per sample)", "Widths"):
        assert f"\n\n{heading}\n" in text
    assert "female × ≥60 (worst after)   20" in text
    assert "\nGates\n" not in text
    assert "Excessive loss" not in classic.fairquant_report(inputs)


def test_bit_distribution_is_of_the_finished_model(inputs, run_folder):
    rows = list(csv.DictReader(classic.bit_distribution(inputs.distribution).splitlines()))
    assert [row.pop("assigned_avg_bits") for row in rows] == ["8.0", "4.0", "4.0"]
    with (run_folder / "plots/quantize/bit_distribution.csv").open() as file:
        assert rows == list(csv.DictReader(file))


def test_percentages_by_channel_and_parameter(inputs):
    table, sentence = classic.bitwidth_percentages(inputs).rstrip().split("\n\n")
    lines = [line.split() for line in table.splitlines()]
    assert lines[2] == ["3bit", "60.00", "50.00", "0.00", "0.00"]
    assert lines[5] == ["average", "bits", "4.500", "4.800", "4.900", "5.200"]
    assert sentence == (
        "Bits per weight: 5.20 assigned, 4.80 in the finished model; 12.5 % of the units have another width than "
        "assigned."
    )


def test_size_report_has_the_bytes_on_the_disk(inputs):
    lines = classic.size_report(inputs).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("exported file"))
    assert [line.split() for line in lines[start : start + 3]] == [
        ["exported", "file", "bytes"], ["packed", "file", "1251000"], ["ONNX", "file", "1500000"],
    ]  # fmt: skip


def test_exported_files_have_their_tables(inputs, full_inputs):
    text = classic.fairquant_report(full_inputs)
    for what in ("test accuracy", "against the simulation", "one forward pass"):
        assert f"\n\nExported files ({what})\n" in text
    assert "\n\nGates of the export\n" in text
    assert "Exported files" not in classic.fairquant_report(inputs)


def test_size_report_has_the_finished_model_and_the_assigned_widths(inputs):
    table, _, *notes = classic.size_report(inputs).rstrip().split("\n\n")
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()[1:]}
    assert rows == {
        "packed_mb": ["1.25", "1.4"], "fp32_mb": ["7.5", "7.5"], "ratio": ["6", "5.4"], "gbops": ["3.5", "3.75"],
        "avg_bits.by_parameter": ["4.8", "5.2"], "avg_bits.by_channel": ["4.5", "4.9"], "weights_mb": ["–", "1.3"],
    }  # fmt: skip
    assert "MB = 10^6 bytes" in notes[0]


def test_logs_are_joined_under_their_names_and_end_with_the_test_result(inputs):
    assert classic.training_log(inputs) == (
        "== pretrain\nepoch 1: ...\nkept epoch 2\n\n== quantize\nnothing was trained\n\n"
        "== evaluate (full precision, then quantized)\n"
        "test accuracy: 0.8400 → 0.8100, worst group: 0.8000 → 0.7000\n"
        "    female × <60: 0.9000 → 0.8750\n    female × ≥60: 0.8500 → 0.7000\n    male|$x_1$: 0.8000 → 0.8000\n"
    )


def test_a_group_without_samples_is_a_dash_in_the_log(inputs):
    evaluate = {**inputs.metrics["evaluate"], "group": {"a": {"n": 0, "before": None, "after": None}}}
    changed = dataclasses.replace(inputs, metrics={**inputs.metrics, "evaluate": evaluate})
    assert classic.training_log(changed).endswith("\n    a: – → –\n")
