"""The exported files as tables: their sizes, the runtimes beside the simulation, how long a forward pass takes.

The simulation is the quantized model as torch computes it, the one that was evaluated; a runtime executes the exported
file. Everything is read from metrics/export.json. Only ``size`` is always there: what was not tried has no table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fairquant.report.cells import percent
from fairquant.report.details import Cells, gate_table, plain
from fairquant.report.shown import extremes

FILES = {"packed_mb": "packed file", "onnx_mb": "ONNX file", "tensorrt_mb": "ONNX file for TensorRT"}
"""What may have been exported: keys of ``size``, and how they are called."""
REFERENCES = {
    "computed_mb": "as computed: weights, scales, width map, rest",
    "weights_mb": "weights at their widths alone",
    "fp32_mb": "full precision",
}
"""What the files are held against."""
RUNTIMES = {
    "packed": "packed file",
    "onnxruntime": "onnxruntime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT file",
}
"""What ran on the test split: the packed file in torch, the ONNX file in both runtimes, TensorRT's in onnxruntime."""
FP32 = "_fp32"
"""Behind a runtime's name in ``latency``: the full-precision model."""
NOT_MEASURED = "How long a forward pass takes was not measured; `dvc exp run -S export.latency.runs=50` does it."
NOT_TRIED = "No exported file was run on the test split (params.yaml: export.formats, export.runtimes)."


def size_cells(export: Mapping[str, Any]) -> Cells:
    """Return the cells of the sizes on disk, and of what they are held against, in 10^6 bytes.

    >>> size_cells({"size": {"onnx_mb": 1.5, "computed_mb": 1.25, "fp32_mb": 7.5}})[1]
    ('ONNX file', '1.500', '1.200', '5.0')
    """
    size = export["size"]
    cells: Cells = [("file", "MB", "of the computed size", "times smaller than fp32")]
    for key, name in {**FILES, **REFERENCES}.items():
        if key in size:
            own = size[key]
            cells.append((name, f"{own:.3f}", f"{own / size['computed_mb']:.3f}", f"{size['fp32_mb'] / own:.1f}"))
    return cells


def file_bytes(export: Mapping[str, Any]) -> Cells:
    """Return the cells of the files' exact sizes; the header alone where nothing was exported.

    >>> file_bytes({"size": {"packed_mb": 1.250001, "fp32_mb": 7.5}})
    [('exported file', 'bytes'), ('packed file', '1250001')]
    """
    size = export["size"]
    return [("exported file", "bytes"), *((name, str(round(1e6 * size[k]))) for k, name in FILES.items() if k in size)]


def form_line(export: Mapping[str, Any]) -> str:
    """Return how many layers of the ONNX file hold integers and what activations are; nothing without such a file.

    >>> form_line({"form": {"integer_layers": 0, "float_layers": 21, "activations": "fp32", "activation_bits": 32}})
    'Activations are floats, and so is the arithmetic: weights, stored at their widths, become floats at load.'
    """
    form = export.get("form")
    if not form:
        return ""
    if form["activations"] == "fp32":
        stored = "weights, stored at their widths, become floats at load"
        return f"Activations are floats, and so is the arithmetic: {stored}."
    whole, floats = form["integer_layers"], form["float_layers"]
    rest = f", {floats} {'holds' if floats == 1 else 'hold'} floats" if floats else ""
    activations = {
        "static": f"Activations are on fixed {form['activation_bits']}-bit grids: these layers compute on integers.",
        "dynamic": f"Activations are on {form['activation_bits']}-bit grids whose ranges are found in each batch.",
    }
    named = f" Floats: {', '.join(form['float_names'])}." if whole and form.get("float_names") else ""
    return f"{whole} of {whole + floats} layers hold integer weights{rest}. {activations[form['activations']]}{named}"


def accuracy_cells(export: Mapping[str, Any]) -> Cells:
    """Return the cells of test accuracy: simulation and runtimes side by side; nothing where none was tried."""
    parity = export.get("parity", {})
    if not parity:
        return []
    runtimes = {runtime_name(name): values for name, values in parity.items()}
    first = next(iter(parity.values()))
    shown = extremes({name: group["runtime"] for name, group in first["group"].items()})
    sizes = [str(first["group"][name]["n"]) for name in shown]
    heads = [*shown, "overall", "worst group", *(["accuracy gap, max − min"] if first.get("gap") else [])]
    columns = [("group", *heads), ("n", *sizes, str(first["n"]), *[""] * (len(heads) - len(sizes) - 1))]
    simulations = {name: _accuracies(values, "simulation", shown) for name, values in runtimes.items()}
    if len(set(simulations.values())) == 1:
        columns.append(("simulation %", *next(iter(simulations.values()))))
    else:  # each runtime was held against another model
        columns += [(f"simulation for {name} %", *column) for name, column in simulations.items()]
    columns += [(f"{name} %", *_accuracies(values, "runtime", shown)) for name, values in runtimes.items()]
    return list(zip(*columns, strict=True))


def _accuracies(values: Mapping[str, Any], which: str, shown: Sequence[str]) -> tuple[str, ...]:
    """Return the cells below a header: ``which`` of each group shown, overall, worst group and, where known, gap."""
    totals = [values[key] for key in ("overall", "worst_group", "gap") if key in values]
    return tuple(percent(pair[which]) for pair in [*(values["group"][name] for name in shown), *totals])


def agreement_cells(export: Mapping[str, Any]) -> Cells:
    """Return the cells of how far each runtime's answers are from the simulation's; nothing where none was tried."""
    parity = export.get("parity", {})
    if not parity:
        return []
    names = [runtime_name(name) for name in parity]
    header = ("group", "n", *(f"{what}, {name}" for name in names for what in ("same class %", "max |Δlogit|")))
    cells: Cells = [header]
    first = next(iter(parity.values()))
    for group in extremes({name: values["agreement"] for name, values in first["group"].items()}):
        runtimes = [runtime["group"][group] for runtime in parity.values()]
        cells.append((group, str(runtimes[0]["n"]), *_agreement(runtimes)))
    return [*cells, ("all", str(first["n"]), *_agreement(list(parity.values())))]


def _agreement(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [cell for row in rows for cell in (almost(row["agreement"]), plain(row["max_logit_difference"], 3))]


def almost(share: float | None) -> str:
    """Write a share in percent, rounded down: only what is all of them is 100.00; None is "–".

    >>> almost(1.0), almost(0.99996), almost(0.9985), almost(None)
    ('100.00', '99.99', '99.85', '–')
    """
    return "–" if share is None else f"{math.floor(1e4 * share + 1e-6) / 100:.2f}"


def agreement_line(export: Mapping[str, Any]) -> str:
    """Return one sentence on the runtimes as a whole; that nothing was tried, where it is so."""
    parity = export.get("parity", {})
    if not parity:
        return NOT_TRIED
    parts = [
        f"{runtime_name(name)} {almost(values['agreement'])} % (largest difference of a logit "
        f"{plain(values['max_logit_difference'], 3)})"
        for name, values in parity.items()
    ]
    return f"Same class as the simulation on {next(iter(parity.values()))['n']} test images: {', '.join(parts)}."


def integer_line(export: Mapping[str, Any]) -> str:
    """Return how onnxruntime stands to exact integer arithmetic; nothing where that was not computed.

    >>> integer_line({"integer": {"n": 256, "agreement": 1.0, "equal": 0.996, "max_logit_difference": 0.02}})
    'onnxruntime against exact integer arithmetic, 256 test images: same class on 100.00 %, all logits equal on 99.60 \
%, largest difference of a logit 0.02.'
    """
    found = export.get("integer")
    if not found:
        return ""
    return (
        f"onnxruntime against exact integer arithmetic, {found['n']} test images: same class on "
        f"{almost(found['agreement'])} %, all logits equal on {almost(found['equal'])} %, largest difference of a "
        f"logit {plain(found['max_logit_difference'], 3)}."
    )


def latency_cells(export: Mapping[str, Any]) -> Cells:
    """Return the cells of one forward pass's time, and how many times faster that is; nothing where not measured."""
    batches = export.get("latency", {}).get("batch", {})
    if not batches:
        return []
    cells: Cells = [("model", "batch", "median ms", "p95 ms", "× torch fp32", "× same runtime, fp32")]
    for batch in sorted(batches, key=int):
        times = batches[batch]
        for name, own in times.items():
            same = name.removesuffix(FP32) + FP32
            ratios = [_ratio(times.get(reference), own) for reference in (f"torch{FP32}", same)]
            cells.append((_model(name), batch, f"{own['median_ms']:.2f}", f"{own['p95_ms']:.2f}", *ratios))
    return cells


def _model(name: str) -> str:
    kind = "fp32" if name.endswith(FP32) else "quantized"
    return f"{runtime_name(name.removesuffix(FP32))}, {kind}"


def _ratio(reference: Mapping[str, float] | None, own: Mapping[str, float]) -> str:
    return "–" if reference is None else f"{reference['median_ms'] / own['median_ms']:.2f}"


def latency_line(export: Mapping[str, Any]) -> str:
    """Return what the times are of, or how to measure them."""
    latency = export.get("latency")
    if not latency:
        return NOT_MEASURED
    threads = latency["threads"]
    return (
        f"One forward pass at {latency['image_size']} × {latency['image_size']} pixels on {threads} "
        f"thread{'' if threads == 1 else 's'}, {latency['runs']} timed runs of each model, in turn. ×: how many times "
        "faster, by the medians. Times are of the machine that ran the stage."
    )


def runtime_name(key: str) -> str:
    """Return what a runtime is called in tables.

    >>> runtime_name("openvino"), runtime_name("other")
    ('OpenVINO', 'other')
    """
    return RUNTIMES.get(key, key)


def all_gates(evaluate: Mapping[str, Any], export: Mapping[str, Any]) -> Cells:
    """Return the cells of all gates that are set, those of the export as ``export.…``; nothing without any.

    >>> all_gates({}, {"gates": {"gate": {"disagreement": {"value": 0.0, "limit": 0.01, "passed": True}}}})[1]
    ('export.disagreement', '0', '0.01', 'passed')
    """
    own, exported = gate_table(evaluate), gate_table(export)
    return [*(own or exported)[:1], *own[1:], *((f"export.{name}", *cells) for name, *cells in exported[1:])]
