"""The model card: what the model is, for whom it works how well, how sure that is, and what it is not for.

Headings and their order are those of Mitchell et al. 2019, "Model Cards for Model Reporting", arXiv 1810.03993. Every
sentence is derived from the run's results and settings; what a run cannot know is left to the model's owner by name.
"""

from __future__ import annotations

from fairquant.report.cells import as_markdown, escape
from fairquant.report.details import harmed_line
from fairquant.report.export_section import SIZES, times
from fairquant.report.export_tables import agreement_line, all_gates, integer_line, size_cells
from fairquant.report.inputs import ReportInputs
from fairquant.report.model_card_data import choice_of_samples, group_factors, sample_tables, source
from fairquant.report.model_card_details import details, provenance, training, usage
from fairquant.report.model_card_limits import caveats
from fairquant.report.model_card_results import (
    card_group_table,
    class_table,
    gap_sentences,
    harm_sentences,
    rate_table,
)
from fairquant.report.shown import rule, some
from fairquant.report.tables import gap_table, group_rows, table_notes, worst

OWNER = "*To be filled in by the model's owner:* "
"""In front of what a run cannot know."""
IMAGES, DESCRIPTION = "number of training images", "data/prepared/meta.json"
SOURCE = (
    "Headings after Mitchell et al. 2019, “Model Cards for Model Reporting” "
    "([arXiv 1810.03993](https://arxiv.org/abs/1810.03993)). Written by the pipeline from the results of one run."
)


def model_card(inputs: ReportInputs) -> str:
    """Return model_card.md."""
    parts = [
        f"# Model card: {escape(inputs.title)}",
        SOURCE,
        "## Model details",
        _bullets(details(inputs)),
        "### Training",
        _bullets(training(inputs)),
        f"{OWNER}who made the model and answers for it, contact, licence, date and version.",
        *_intended_use(inputs),
        *_factors(inputs),
        *_metrics(inputs),
        *_data(inputs),
        *_analyses(inputs),
        *_ethics(inputs),
        "## Caveats and recommendations",
        _bullets(caveats(inputs)),
        "## How to use the files",
        *usage(inputs),
        "## Provenance",
        _bullets(provenance(inputs)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _bullets(sentences: list[str]) -> str:
    """Return a list whose items are escaped; items begin with a word of ours, never with a name."""
    return "\n".join(f"- {escape(sentence)}" for sentence in sentences)


def _intended_use(inputs: ReportInputs) -> list[str]:
    classes, name = inputs.data["classes"], inputs.data["source"]
    known = [
        f"Made to tell apart {len(classes)} classes ({some(classes)}) in images like those of {name}, prepared in "
        "the same way, in the place of the full-precision classifier where size or speed matter.",
        "Not made for images of anything else: every image is given one of these classes, there is no “none of these”.",
        "Not made to tell which group an image belongs to. Group labels are no input of the model.",
        "Not examined on other sources, devices or populations, nor in use. The numbers below are no clearance for "
        "decisions about people: that takes an examination on the data, and with the people, of that use.",
    ]
    return [
        "## Intended use",
        _bullets(known),
        f"{OWNER}the uses and users the model is meant for, and those that are ruled out.",
    ]


def _factors(inputs: ReportInputs) -> list[str]:
    return [
        "## Factors",
        _bullets(group_factors(inputs)),
        f"{OWNER}groups and conditions (devices, light, place) that are known to matter and are not in the data.",
    ]


def _metrics(inputs: ReportInputs) -> list[str]:
    evaluate = inputs.metrics["evaluate"]
    meanings = [note for note in table_notes(evaluate, inputs.params["evaluate"]) if not note.startswith("flips")]
    sentences = [
        "Accuracy: share of test images whose class of the largest logit is the true one; overall, of each group, of "
        "the worst-served group.",
        "Accuracy gaps between groups: largest minus smallest accuracy (max − min), and the groups' mean minus the "
        "smallest.",
        *(f"In the tables, {note}" for note in meanings),
        "Exported files are held against the simulation, the quantized model as torch computes it, image by image.",
    ]
    return ["## Metrics", _bullets(sentences)]


def _data(inputs: ReportInputs) -> list[str]:
    by_group, by_class = sample_tables(inputs)
    return [
        "## Evaluation data",
        _bullets(choice_of_samples(inputs)),
        as_markdown(by_group),
        rule(len(inputs.data["groups"]), "groups", IMAGES, DESCRIPTION),
        as_markdown(by_class),
        rule(len(inputs.data["classes"]), "classes", IMAGES, DESCRIPTION),
        "## Training data",
        _bullets(source(inputs)),
        f"{OWNER}who took the images, of whom, with what consent and under which licence; how labels and groups were "
        "assigned, and by whom.",
    ]


def _analyses(inputs: ReportInputs) -> list[str]:
    evaluate, export = inputs.metrics["evaluate"], inputs.metrics["export"]
    gaps, rates, classes = gap_table(evaluate), rate_table(evaluate), class_table(inputs)
    gates = all_gates(evaluate, export)
    parts = [
        "## Quantitative analyses",
        "### Per group: full precision, quantized, exported",
        as_markdown(card_group_table(evaluate, export)),
        *(escape(sentence) for sentence in harm_sentences(evaluate, inputs.params["evaluate"]["significance"])),
        escape(agreement_line(export)),
        escape(integer_line(export)),
        "### Gaps",
        *(escape(sentence) for sentence in gap_sentences(evaluate)),
        as_markdown([("gap between groups", "full precision %", "quantized %", "change"), *gaps[1:]])
        if gaps[1:]
        else "",
    ]
    if len(rates[0]) > 2:
        meaning = "ECE: expected calibration error, 15 bins, 0 is honest; AUC: area under the ROC curve."
        parts += ["### Errors and calibration of the quantized model", meaning, as_markdown(rates)]
    if classes:
        parts += ["### Per class", as_markdown(classes)]
        parts.append(rule(len(inputs.data["classes"]), "classes", "accuracy after compression", "classes.csv"))
    parts += ["### Size and speed", escape(SIZES), as_markdown(size_cells(export))]
    parts += [part for part in times(export) if not part.startswith("#")]
    return parts + (["### Gates", "In the units of params.yaml.", as_markdown(gates)] if gates else [])


def _ethics(inputs: ReportInputs) -> list[str]:
    evaluate, params = inputs.metrics["evaluate"], inputs.params
    rows = group_rows(evaluate)
    lowest = worst(rows, "after")
    served = next((row for row in rows if row.name == lowest), None)
    tuned = f", fairness loss {params['quantize']['fairness_loss']} in fine-tuning" if inputs.curves["quantize"] else ""
    sentences = [
        f"Group labels, where these settings look at them: allocator {params['allocator']}, reducer "
        f"{params['reducer']} of importance to each {params['importance']['by']}{tuned}. In use the model needs no "
        "group label.",
    ]
    if served is not None and served.after is not None:
        overall = evaluate["overall"]["after"]
        sentences.append(
            f"Worst served by the quantized model: {served.name}, {100 * served.after:.1f} % of {served.n} test images "
            f"against {100 * overall:.1f} % overall."
        )
    sentences += [line for line in [harmed_line(evaluate)] if line]
    return [
        "## Ethical considerations",
        _bullets(sentences),
        f"{OWNER}whether the data are sensitive, who could be harmed by an error, and what is done about it.",
    ]
