"""Quantizers on a model: a parametrization on the ``weight`` of every quantizable layer.

``torch.nn.utils.parametrize`` keeps the layer's class and forward, so every subclass of Conv2d and Linear, padding
mode and user of ``weight`` (``MultiheadAttention.out_proj``) works. The state dict holds the full-precision weight as
``<layer>.parametrizations.weight.original``.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fairquant.allocate.bitmap import BitMap, unit_shape
from fairquant.errors import ArtifactError, UserError
from fairquant.models.layers import quantizable_layers, weight_parameter
from fairquant.quantize.codebook import CodebookQuantizer
from fairquant.quantize.learned_widths import LearnedWidthQuantizer, learned_quantizers
from fairquant.quantize.quantizer import WeightQuantizer

ORIGINAL = ".parametrizations.weight.original"
QUANTIZER = ".parametrizations.weight.0"


def quantize_model(
    model: nn.Module,
    bitmap: BitMap,
    *,
    scale: str = "absmax",
    percentile: float = 99.9,
    tables: Mapping[str, Tensor] | None = None,
    zero_points: Mapping[str, Tensor] | None = None,
    iterations: int = 50,
    books: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> None:
    """Attach a quantizer to every quantizable layer of ``model``, in place.

    Args:
        model: full-precision model; its weights stay, as the latent weights.
        bitmap: widths of every quantizable layer, and the scheme of their grids or that there are codebooks instead.
        scale: name of the step-size method (a file of ``quantize/scales``).
        percentile: of |w|, used by ``scale: percentile``.
        tables: step sizes by layer, instead of measuring them (see ``WeightQuantizer.table``).
        zero_points: with ``tables``, in the asymmetric scheme.
        iterations: of k-means at most, where there are codebooks.
        books: codes and centroids by layer, instead of clustering (see ``CodebookQuantizer``).

    Raises:
        ArtifactError: ``bitmap`` is not of this model (names a layer and what differs).
        UserError: the model already has quantizers, or a width has no codebook.
    """
    if quantizers(model) or codebooks(model):
        raise UserError("model: got a model that is quantized already; allowed: a full-precision model")
    layers = quantizable_layers(model)
    _check(bitmap, {name: tuple(layer.get_parameter("weight").shape) for name, layer in layers.items()})
    for name, layer in layers.items():
        bits = torch.from_numpy(bitmap.layers[name].copy())
        weight, table = layer.get_parameter("weight"), None if tables is None else tables[name]
        try:
            quantizer: nn.Module
            if bitmap.codebook is not None:
                given = None if books is None else books[name]
                quantizer = CodebookQuantizer(weight, bits, per=bitmap.codebook, iterations=iterations, given=given)
                weight.requires_grad_(weight.requires_grad and quantizer.trains_weight)
            else:
                quantizer = WeightQuantizer(
                    weight,
                    bits,
                    method=scale,
                    percentile=percentile,
                    scheme=bitmap.scheme,
                    table=table,
                    zero_points=None if zero_points is None else zero_points[name],
                )
        except UserError as error:
            raise type(error)(f"layer {name}: {error}") from None
        parametrize.register_parametrization(layer, "weight", quantizer.train(layer.training), unsafe=True)


def _check(bitmap: BitMap, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name in sorted(set(shapes) ^ set(bitmap.layers)):
        held = "widths for" if name in bitmap.layers else "no widths for"
        raise ArtifactError(f"bit map: got {held} layer {name}; allowed: widths for each layer of the model")
    for name, shape in shapes.items():
        wanted, got = unit_shape(bitmap.granularity, shape), bitmap.layers[name].shape
        if got != wanted:
            raise ArtifactError(
                f"bit map of layer {name}: got shape {got}; allowed: {wanted} ({bitmap.granularity} of {shape})"
            )


def attach_learned(model: nn.Module, bitmap: BitMap, *, held: AbstractSet[str], bit_min: int, bit_max: int) -> None:
    """Attach quantizers with learnable widths that start at ``bitmap``; layers in ``held`` get fixed ones.

    Raises as ``quantize_model`` does, and ``UserError`` for a width outside [bit_min, bit_max].
    """
    if quantizers(model) or learned_quantizers(model):
        raise UserError("model: got a model that is quantized already; allowed: a full-precision model")
    layers = quantizable_layers(model)
    _check(bitmap, {name: tuple(layer.get_parameter("weight").shape) for name, layer in layers.items()})
    for name, layer in layers.items():
        weight, bits = layer.get_parameter("weight"), torch.from_numpy(bitmap.layers[name].copy())
        try:
            quantizer: nn.Module = (
                WeightQuantizer(weight, bits, method="absmax")
                if name in held
                else LearnedWidthQuantizer(weight, bits, bit_min=bit_min, bit_max=bit_max)
            )
        except UserError as error:
            raise type(error)(f"layer {name}: {error}") from None
        parametrize.register_parametrization(layer, "weight", quantizer.train(layer.training), unsafe=True)


def settle_learned(model: nn.Module) -> None:
    """Replace learned quantizers by fixed ones with the same result, bit for bit.

    The learned layers' latent weights become the quantized ones: a code times a step size is its own quantization.
    """
    learned, fixed = learned_quantizers(model), quantizers(model)
    layers = quantizable_layers(model)
    tables = scale_tables(model)
    widths = {name: quantizer.bits.cpu().numpy().copy() for name, quantizer in fixed.items()}
    for name, quantizer in learned.items():
        tables[name] = quantizer.table(weight_parameter(layers[name]))
        widths[name] = quantizer.bits().cpu().numpy()
    granularity = next(iter(learned.values())).granularity if learned else bitmap_of(model).granularity
    for name, layer in layers.items():
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=name in learned)
    bitmap = BitMap(granularity, {name: widths[name] for name in layers})
    quantize_model(model, bitmap, scale="lsq", tables=tables)


def quantizers(model: nn.Module) -> dict[str, WeightQuantizer]:
    """Return the quantizers by layer name, in module order; empty for a full-precision model."""
    named = ((name, module) for name, module in model.named_modules() if isinstance(module, WeightQuantizer))
    return {name.removesuffix(QUANTIZER): module for name, module in named}


def codebooks(model: nn.Module) -> dict[str, CodebookQuantizer]:
    """Return the codebooks by layer name, in module order; empty for a model without."""
    named = ((name, module) for name, module in model.named_modules() if isinstance(module, CodebookQuantizer))
    return {name.removesuffix(QUANTIZER): module for name, module in named}


def latent_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the full-precision weights under the quantizers, by layer name."""
    return {name: model.get_parameter(name + ORIGINAL) for name in quantizers(model) | codebooks(model)}


def bitmap_of(model: nn.Module) -> BitMap:
    """Return the widths of a quantized model; raises ``UserError`` for a model without quantizers."""
    found, coded = quantizers(model), codebooks(model)
    if coded:
        of_first = next(iter(coded.values()))
        widths = {name: quantizer.bits.cpu().numpy().copy() for name, quantizer in coded.items()}
        return BitMap(of_first.granularity, widths, codebook=of_first.per)
    if not found:
        raise UserError("model: got a model without quantizers; allowed: one that quantize_model was called on")
    first = next(iter(found.values()))
    widths = {name: quantizer.bits.cpu().numpy().copy() for name, quantizer in found.items()}
    return BitMap(first.granularity, widths, scheme=first.scheme)


def scale_tables(model: nn.Module) -> dict[str, Tensor]:
    """Return the step sizes in use by layer name: (out | 1, columns) each, see ``WeightQuantizer.table``."""
    weights = latent_weights(model)
    return {name: quantizer.table(weights[name]) for name, quantizer in quantizers(model).items()}


def zero_point_tables(model: nn.Module) -> dict[str, Tensor]:
    """Return the zero points in use by layer name, int32 of ``scale_tables``' shapes; empty in the symmetric scheme."""
    weights = latent_weights(model)
    found = {name: quantizer.zero_points(weights[name]) for name, quantizer in quantizers(model).items()}
    return {name: table for name, table in found.items() if table is not None}


def refresh_scales(model: nn.Module) -> None:
    """Measure anew the grids of methods that do so at the start of every epoch (percentile, mse)."""
    weights = latent_weights(model)
    for name, quantizer in quantizers(model).items():
        quantizer.refresh(weights[name])
