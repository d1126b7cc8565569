"""The model card: every sentence follows from the run, what a run cannot know is left to the owner."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fairquant.report import model_card_data, model_card_details, model_card_limits, model_card_results
from fairquant.report.inputs import ReportInputs
from fairquant.report.model_card import OWNER, model_card
from tests.report.conftest import SMALLEST_EXPORT, around, export_metrics, full_metrics

HEADINGS = [
    "## Model details", "## Intended use", "## Factors", "## Metrics", "## Evaluation data", "## Training data",
    "## Quantitative analyses", "## Ethical considerations", "## Caveats and recommendations",
    "## How to use the files",
    "## Provenance",
]  # fmt: skip


def section(card: str, heading: str) -> str:
    return card.split(f"\n## {heading}\n\n")[1].split("\n\n## ")[0]


def changed(inputs: ReportInputs, stage: str, **values: Any) -> ReportInputs:
    metrics = {**inputs.metrics, stage: {**inputs.metrics[stage], **values}}
    return dataclasses.replace(inputs, metrics=metrics)


@pytest.mark.parametrize("which", ["inputs", "full_inputs", "spent_inputs"])
def test_headings_are_those_of_model_cards(which, request):
    card = model_card(request.getfixturevalue(which))
    assert [line for line in card.splitlines() if line.startswith("## ")] == HEADINGS
    assert card.count(OWNER) == 5
    assert "arxiv.org/abs/1810.03993" in card
    assert card == model_card(request.getfixturevalue(which))
    assert "None" not in card.replace("none", "")


def test_what_the_model_is(full_inputs):
    text = section(model_card(full_inputs), "Model details")
    assert (
        "test\\_net, an image classifier of 2,900 parameters, of which 2,864 in 3 layers can be quantized; 3,128"
        in text
    )
    assert "mean 0.5, 0.5, 0.5 and std 0.25, 0.25, 0.25 per channel." in text
    assert "Output: one logit for each of 2 classes: be\\_nign, \\<b\\>mal\\*\\</b\\>." in text
    assert "50.0 % of the weights at 3 bits, 50.0 % at 8 bits. Mode fair\\_static\\_qat, allocator levels" in text
    assert "Form of the ONNX file: 2 of 3 layers hold integer weights, 1 holds floats. Activations are on fixed" in text
    assert "files on disk: packed file 1.251 MB, ONNX file 1.500 MB." in text
    assert "Full precision: from random weights, 10 epochs, batch\\_size 64, lr 0.001" in text
    assert "The quantized model was not fine-tuned." in text


def test_fine_tuning_and_imported_weights(inputs):
    params = {**inputs.params, "model": {"weights": "imagenet"}, "debug": True}
    params["pretrain"] = {**params["pretrain"], "epochs": 0}
    trained = dataclasses.replace(inputs, params=params, curves={"pretrain": (), "quantize": ({}, {})})
    pretrained, tuned, _, debug = model_card_details.training(trained)
    assert pretrained == "Full precision: weights imagenet, not trained any further."
    assert tuned.startswith("Fine-tuning of the quantized model: 2 epochs, batch_size 64, lr 0.0001")
    assert tuned.endswith("fairness loss gap with weight 1.")
    assert debug == "This was a debug run: a few hundred samples, one epoch."
    assert "fairness loss gap in fine-tuning" in section(model_card(trained), "Ethical considerations")
    assert "fine-tuning" not in section(model_card(inputs), "Ethical considerations")


def test_data_by_split_group_and_class(inputs):
    card = model_card(inputs)
    text = section(card, "Evaluation data")
    assert "The test split: 120 of 600 images of folder\\|\\<x\\>, never trained on." in text
    assert "The split is drawn, stratified by class and group (seed 3)." in text
    assert "| female × \\<60 | 120 | 40 | 40 |" in text
    assert "| \\<b\\>mal\\*\\</b\\> | 150 | 50 | 50 |\n| all | 360 | 120 | 120 |" in text
    assert "Groups, by sex × age\\_group: female × \\<60, female × ≥60, male\\|\\$x\\_1\\$ (3)." in card
    source = section(card, "Training data")
    assert "SYNTHETIC: no claim about people, skin or medicine follows from it" in source  # data.name's own words
    assert "The training split: 360 of 600 images of folder\\|\\<x\\>, counted above." in source
    assert "Rows left out: none." in source


def test_what_was_left_out_of_the_data_is_said(inputs):
    data = {**inputs.data, "dropped": {"unreadable image": 2}, "notes": {"ages repaired": 7}, "merged_groups": ["x"]}
    section = {**inputs.params["data"], "split_by": "patient", "train_subset": 0.5, "test_subset": 100}
    params = {**inputs.params, "data": section, "evaluate": {**inputs.params["evaluate"], "min_group_size": 30}}
    some = changed(dataclasses.replace(inputs, data=data, params=params), "evaluate", audit={"age": {}})
    text = "\n".join(
        [*model_card_data.group_factors(some), *model_card_data.choice_of_samples(some), *model_card_data.source(some)]
    )
    for sentence in (
        "Groups too small to stand alone, merged into “other”: x.",
        "Further groupings, reported in report.md: age.",
        "Groups of fewer than 30 test images are shown, but left out of worst group and gaps.",
        "Images that share patient are on one side of the split.",
        "Only part of the test split was used (data.test_subset 100).",
        "Only part of the training split was used (data.train_subset 0.5).",
        "Rows left out: unreadable image (2).",
        "Also counted: ages repaired (7).",
    ):
        assert sentence in text


def test_three_models_per_group():
    cells = model_card_results.card_group_table(full_metrics(), export_metrics())
    assert cells[0] == (
        "group", "n", "full precision %", "quantized %", "change", "onnxruntime %", "OpenVINO %", "p (Holm)", "harm",
    )  # fmt: skip
    assert cells[2] == (
        "female × ≥60 (worst after)", "20", "85.0 [81.0, 89.0]", "70.0 [66.0, 74.0]", "-15.0 [-20.0, -10.0]", "70.0",
        "70.0", "0.023", "harmed",
    )  # fmt: skip
    assert [row[5:7] for row in cells[3:]] == [
        ("78.8", "76.0"), ("80.5", "80.5"), ("70.0", "70.0"), ("–", "–"), ("17.5", "17.5"),
    ]  # fmt: skip
    plain = model_card_results.card_group_table(full_metrics(), SMALLEST_EXPORT)
    assert plain[0] == ("group", "n", "full precision %", "quantized %", "change", "p (Holm)", "harm")


def test_a_packed_file_with_other_logits_has_a_column():
    export = export_metrics()
    export["parity"]["packed"]["max_logit_difference"] = 0.001
    assert "packed file %" in model_card_results.card_group_table(full_metrics(), export)[0]


def test_a_group_called_like_a_total_keeps_its_own_number():
    evaluate, export = full_metrics(), export_metrics()
    for tree in (evaluate["group"], evaluate["harm"], evaluate["interval"]["group"]):
        tree["overall"] = tree.pop("male|$x_1$")
    for values in export["parity"].values():
        values["group"]["overall"] = values["group"].pop("male|$x_1$")
    cells = model_card_results.card_group_table(evaluate, export)
    assert [row[5] for row in cells if row[0].startswith("overall")] == ["78.8", "80.5"]


def test_harm_in_words():
    (sentence,) = model_card_results.harm_sentences(full_metrics(), 0.05)
    assert sentence == (
        "Significantly harmed by the compression at α = 0.05 (McNemar's exact test on the same images, Holm-corrected "
        "over 3 groups): female × ≥60 (-15.0 points, p 0.023)."
    )
    unharmed = full_metrics()
    unharmed["harm"]["female × ≥60"]["harmed"] = False
    none, doubt = model_card_results.harm_sentences(unharmed, 0.01)
    assert none.startswith("No group is significantly harmed by the compression at α = 0.01 (McNemar's exact test")
    assert doubt == (
        "That is no proof that none is: the intervals of the change reach down to -20.0 points (female × ≥60)."
    )
    for name in unharmed["interval"]["group"]:
        unharmed["interval"]["group"][name] = around(0.5, 0.75)
    assert model_card_results.harm_sentences(unharmed, 0.01) == [none]
    assert model_card_results.harm_sentences({}, 0.05) == ["Whether the compression harmed a group was not tested."]


def test_gap_in_words():
    gap = full_metrics()["gap"]
    assert model_card_results.gap_sentences(full_metrics()) == [
        "The accuracy gap (max − min) of the quantized model is wider than that of the full-precision one: 10.0 points "
        "before, 20.0 after, change +10.0 [+5.0, +15.0]."
    ]
    swapped = {"gap": {"before": gap["after"], "after": gap["before"]}}
    assert "is narrower than that" in model_card_results.gap_sentences(swapped)[0]
    equal = {"gap": {"before": gap["after"], "after": gap["after"]}}
    assert "is as wide as that" in model_card_results.gap_sentences(equal)[0]
    undefined = {"gap": dict.fromkeys(("before", "after"), {"max_minus_min": None})}
    assert model_card_results.gap_sentences(undefined) == [
        "The accuracy gap is undefined: fewer than two groups count."
    ]
    assert model_card_results.gap_sentences({}) == ["Gaps between groups were not computed (evaluate.parity: false)."]


def test_rates_calibration_and_classes(inputs):
    group = {
        "a|b": {"n": 3, "accuracy": 0.5, "tpr": None, "auc": 0.75, "ece": 0.125},
        "c": {"n": 2, "auc": None, "ece": 0.5},
    }
    assert model_card_results.rate_table({"quantized": {"group": group}}) == [
        ("group", "n", "TPR %", "AUC", "ECE"), ("a|b", "3", "–", "0.750", "0.125"), ("c", "2", "", "–", "0.500"),
    ]  # fmt: skip
    assert model_card_results.rate_table({}) == [("group",)]
    accuracy = {"x": {"n": 4, "accuracy": 0.75}, "y": {"n": 0, "accuracy": None}}
    measured = changed(changed(inputs, "baseline", test={"class": accuracy}), "evaluate", quantized={"class": accuracy})
    assert model_card_results.class_table(measured)[1:] == [("x", "4", "75.0", "75.0"), ("y", "0", "–", "–")]
    assert model_card_results.class_table(inputs) == []


def test_small_groups_are_named_with_their_intervals():
    (sentence,) = model_card_limits.group_sizes(full_metrics(), 0.95)
    assert sentence == (
        "Small groups, of fewer than 100 test images, whose accuracy is uncertain: female × <60 (n = 40, 95 % interval "
        "83.5 to 91.5 %); female × ≥60 (n = 20, 95 % interval 66.0 to 74.0 %); male|$x_1$ (n = 60, 95 % interval 76.0 "
        "to 84.0 %)."
    )


def test_without_small_groups_the_least_certain_is_named():
    evaluate = full_metrics()
    for row in evaluate["group"].values():
        row["n"] += 100
    evaluate["interval"]["group"]["female × ≥60"]["after"]["low"] = 0.5
    assert model_card_limits.group_sizes(evaluate, 0.9) == [
        "The group whose accuracy is least certain: female × ≥60 (n = 120, 90 % interval 50.0 to 74.0 %)."
    ]
    evaluate["group"]["male|$x_1$"] |= {"n": 0, "before": None, "after": None}
    del evaluate["interval"]
    assert model_card_limits.group_sizes(evaluate, 0.9) == [
        "The group whose accuracy is least certain: female × ≥60 (n = 120).",
        "Groups without test images, of which nothing is known: male|$x_1$.",
    ]


def test_caveats_follow_the_form_of_the_files(inputs, full_inputs):
    static = " ".join(model_card_limits.caveats(full_inputs))
    assert "memory and speed are at best those of 8 bits in ONNX runtimes, of full precision in torch." in static
    assert "x86 CPUs without VNNI instructions" in static
    assert "OpenVINO was run with INFERENCE_PRECISION_HINT f32" in static
    floats = " ".join(model_card_limits.caveats(inputs))
    assert "memory and speed are at best those of full precision." in floats
    assert "VNNI" not in floats + "OpenVINO"
    wide = changed(inputs, "quantize", share={"8bit": {"parameters": 1.0, "channels": 1.0}})
    assert "Widths below 8 bits" not in " ".join(model_card_limits.caveats(wide))
    assert "Post-processing" not in floats
    evaluate = {**inputs.params["evaluate"], "postprocess": ["thresholds"]}
    mitigated = dataclasses.replace(inputs, params={**inputs.params, "evaluate": evaluate})
    assert (
        "Post-processing by group (thresholds) was measured, see report.md; the files do not hold it."
        in model_card_limits.caveats(mitigated)
    )
    gpu = changed(inputs, "export", parity={"tensorrt": {}})
    assert "The file for TensorRT was run in onnxruntime" in " ".join(model_card_limits.caveats(gpu))


def test_use_of_the_files_there_are(inputs):
    both = model_card_details.usage(inputs)
    assert 'fairquant.load_packed("models/export/packed.safetensors")' in both[1]
    assert "python -m fairquant.predict models/export/model.onnx images/ --out predictions.csv" in both[3]
    gpu = changed(inputs, "export", size={"tensorrt_mb": 1.0})
    assert "predict models/export/tensorrt.onnx images/" in model_card_details.usage(gpu)[1]
    nothing = changed(inputs, "export", size={"fp32_mb": 1.0})
    assert model_card_details.usage(nothing) == ["No file was exported (params.yaml, export.formats)."]


def test_files_are_called_as_the_export_stage_calls_them():
    from fairquant.export.run import FILES

    assert {key.removesuffix("_mb"): name for key, name in model_card_details.PATHS.items()} == FILES


def test_provenance_names_every_hash(full_inputs):
    text = section(model_card(full_inputs), "Provenance")
    for digest in ("ab" * 32, "cd" * 32, "ef" * 32):
        assert f"sha256 {digest}" in text
