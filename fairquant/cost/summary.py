"""What the assign stage reports of a bit map: metrics as nested JSON, and one table row per layer."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairquant.allocate.bitmap import BitMap, unit_shape
from fairquant.allocate.info import ModelInfo
from fairquant.cost.bops import bops, input_widths
from fairquant.cost.size import size_report
from fairquant.errors import ArtifactError

Row = dict[str, str | int | float]


def summarise_bits(
    bits: BitMap, model_info: Mapping[str, Any], *, activation_bits: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Return avg_bits and share by parameters and by out channels, size (MB, ratio to fp32) and gbops (10⁹ BOPs).

    ``activation_bits`` are the widths of the layers' inputs; layers that are not in it count as fp32. Where it holds
    any, the mean of all layers', weighed by multiply-accumulates, is returned under its name. Keys hold no dots, so
    that ``dvc metrics diff`` names them well. A bit map of another model raises ``ArtifactError``.
    """
    info = _info_of(bits, model_info)
    inputs = input_widths(bits.layers, activation_bits or {})
    by_parameters = bits.shares(info.shapes, by="parameters")
    by_channels = bits.shares(info.shapes, by="channels")
    return {
        "avg_bits": {
            "by_parameter": bits.average(info.shapes, by="parameters"),
            "by_channel": bits.average(info.shapes, by="channels"),
        },
        "size": size_report(bits, info.shapes, rest=info.rest).to_dict(),
        "gbops": bops(info.macs, bits, activation_bits=inputs) / 1e9,
        **({"activation_bits": _mean_width(inputs, info.macs)} if activation_bits else {}),
        "share": {
            f"{width}bit": {"parameters": by_parameters[width], "channels": by_channels[width]}
            for width in bits.widths()
        },
    }


def _mean_width(inputs: Mapping[str, int], macs: Mapping[str, int]) -> float:
    return sum(inputs[name] * macs[name] for name in inputs) / max(1, sum(macs[name] for name in inputs))


def summarise_widths(
    assigned: BitMap,
    final: BitMap,
    model_info: Mapping[str, Any],
    *,
    activation_bits: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return what a mode made of the assigned widths: averages by parameter, and the final shares as above.

    ``changed`` is the share of the assigned map's units whose final width is another one; a coarser final map counts
    for every unit it covers. ``activations`` is ``summarise_bits``' ``activation_bits``, where there are any.
    """
    info = _info_of(assigned, model_info)
    summary = summarise_bits(final, model_info, activation_bits=activation_bits)
    changed = total = 0
    for name, before in assigned.layers.items():
        after = final.layers[name]
        spread = np.broadcast_to(after.reshape(after.shape + (1,) * (before.ndim - after.ndim)), before.shape)
        changed, total = changed + int((spread != before).sum()), total + before.size
    averages = {"assigned": assigned.average(info.shapes), "final": summary["avg_bits"]["by_parameter"]}
    inputs = {"activations": summary["activation_bits"]} if "activation_bits" in summary else {}
    return {"bits": {**averages, "changed": changed / total, **inputs}, "share": summary["share"]}


def layer_shares(bits: BitMap) -> list[Row]:
    """Return one row per layer: ``layer``, mean ``bits`` and the share of its weights at each width of the model."""
    rows: list[Row] = []
    for name, widths in bits.layers.items():
        counts = bits.counts(name)
        shares: Row = {f"share_{width}bit": counts.get(width, 0) / widths.size for width in bits.widths()}
        rows.append({"layer": name, "bits": float(widths.mean()), **shares})
    return rows


def bit_distribution(bits: BitMap, model_info: Mapping[str, Any]) -> list[Row]:
    """Return one row per layer: layer, kind, parameters, units, the units at each width of the model, avg_bits."""
    info = _info_of(bits, model_info)
    rows: list[Row] = []
    for name, widths in bits.layers.items():
        counts = bits.counts(name)
        units: Row = {f"n_{width}bit": counts.get(width, 0) for width in bits.widths()}
        start: Row = {"layer": name, "kind": info.kinds[name], "parameters": math.prod(info.shapes[name])}
        rows.append({**start, "units": widths.size, **units, "avg_bits": float(widths.mean())})
    return rows


def _info_of(bits: BitMap, model_info: Mapping[str, Any]) -> ModelInfo:
    """Read ``model_info``; raise ``ArtifactError`` unless ``bits`` are of its layers."""
    info = ModelInfo.from_json(model_info)
    expected = {name: unit_shape(bits.granularity, shape) for name, shape in info.shapes.items()}
    got = {name: widths.shape for name, widths in bits.layers.items()}
    for name in sorted(expected.keys() | got.keys()):
        if got.get(name) != expected.get(name):
            raise ArtifactError(
                f"bits of layer {name}: got shape {got.get(name)}; allowed: {expected.get(name)}, as the model has it"
            )
    return info


def to_csv(rows: Sequence[Row], columns: Sequence[str] = ()) -> str:
    """Return ``rows`` as csv text with a header; floats have six decimals, small ones six significant digits.

    The columns are those of the first row unless given; a row may lack some, never have others.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(columns or rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _rounded(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _rounded(value: str | int | float) -> str | int | float:
    if not isinstance(value, float):
        return value
    return round(value, 6) if value == 0 or abs(value) >= 1 else float(f"{value:.6g}")
