"""A full-precision model becomes a quantized one: quantizers on its layers, corrected if asked for."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from fairquant.allocate.bitmap import BitMap
from fairquant.config.schema import QuantizeSection
from fairquant.data.store import Store
from fairquant.quantize.attach import quantize_model
from fairquant.train.correction import correct
from fairquant.train.processes import same_everywhere


def round_model(
    model: nn.Module,
    bits: BitMap,
    *,
    store: Store,
    section: QuantizeSection,
    device: torch.device,
    precision: str,
    seed: int,
) -> None:
    """Attach quantizers of widths ``bits`` to ``model`` on ``device``, in place; no weight is trained.

    Grids are of ``section.weight_scheme``, whatever ``bits`` says. Step sizes that came with the widths are used as
    they are, others measured by ``section.scale``; where ``bits`` asks for codebooks, weights are clustered instead.
    Where ``section.correction_images`` asks for it, and some weight is rounded, batch norm and biases are corrected.
    The model ends in evaluation mode, the same in every process: all round it, and take over the first one's.

    Raises ``ArtifactError`` for widths of another model.
    """
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    samples = section.correction_images if bits.widths() != (32,) else 0
    reference = copy.deepcopy(model).eval() if samples else None
    steps = {name: torch.from_numpy(table.copy()) for name, table in bits.steps.items()} or None
    bits = replace(bits, scheme=section.weight_scheme)
    if bits.codebook is None:
        quantize_model(model, bits, scale=section.scale, percentile=section.percentile, tables=steps)
    else:
        quantize_model(model, bits, iterations=section.codebook.iterations)
    model.eval()
    if reference is not None:
        correct(model, reference, store, samples=samples, device=device, precision=precision, seed=seed)
    same_everywhere(model)
