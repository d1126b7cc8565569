"""The files of the published code."""

from __future__ import annotations

import csv

from fairquant.report import classic


def test_every_parameter_and_result_is_in_the_report(inputs):
    lines = classic.fairquant_report(inputs).splitlines()
    for key, value in classic.flatten(inputs.params):
        assert f"  {key} = {classic.text(value)}" in lines
    assert "  group.female × ≥60.after = 0.7" in lines
    assert "  quantized.eopp1 = null" in lines
    assert "  quantize.lr = 0.0001" in lines
    assert "  assign.levels = [0.2, 0.4, 0.4]" in lines
    assert "female × ≥60 (worst after)" in "\n".join(lines)


def test_bit_distribution_is_the_stage_s_table(inputs, run_folder):
    assert classic.bit_distribution(inputs) == (run_folder / "plots/bits/bit_distribution.csv").read_text()
    rows = list(csv.DictReader(classic.bit_distribution(inputs).splitlines()))
    assert sum(int(row["units"]) for row in rows) == 34


def test_percentages_by_channel_and_parameter(inputs):
    lines = [line.split() for line in classic.bitwidth_percentages(inputs.metrics["bits"]).splitlines()]
    assert lines[1:4] == [["2bit", "25.00", "20.00"], ["4bit", "40.00", "40.00"], ["8bit", "35.00", "40.00"]]
    assert lines[4] == ["average", "bits", "4.900", "5.200"]


def test_size_report_has_both_models(inputs):
    report = classic.size_report(inputs)
    assert "size.packed_mb" in report
    assert "Quantized model" in report
    assert "As assigned" in report


def test_logs_are_joined_under_their_names(inputs):
    assert classic.training_log(inputs.logs) == (
        "== pretrain\nepoch 1: ...\nkept epoch 2\n\n== quantize\nnothing was trained\n"
    )
