"""A quantized model in one file: full-precision weights and buffers, widths, step sizes, and how to rebuild it.

Keys: ``state/<plain state-dict name>`` (latent weights, biases, batch-norm statistics …), ``bits/<layer>`` uint8,
``scale/<layer>`` float (out | 1, columns). The header's JSON holds kind, spec, granularity, scale, percentile, layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fairquant import artifacts, plugins
from fairquant.allocate.bitmap import BitMap
from fairquant.errors import ArtifactError, UserError
from fairquant.models.build import build
from fairquant.models.spec import ModelSpec
from fairquant.models.weights import load_into
from fairquant.quantize.attach import ORIGINAL, QUANTIZER, bitmap_of, quantize_model, quantizers, scale_tables

KIND = "quantized model"


def plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict of the full-precision model under the quantizers, with its own key names."""
    return {
        name.removesuffix(ORIGINAL) + ".weight" if name.endswith(ORIGINAL) else name: tensor
        for name, tensor in model.state_dict().items()
        if QUANTIZER + "." not in name
    }


def save_quantized(
    path: str | Path, model: nn.Module, spec: ModelSpec, *, meta: Mapping[str, Any] | None = None
) -> None:
    """Write ``model`` (with quantizers) to ``path``, atomically; bytes depend on the content alone.

    ``meta`` holds further plain values for the header's ``meta`` key. Raises ``UserError`` without quantizers.
    """
    bitmap = bitmap_of(model)
    first = next(iter(quantizers(model).values()))
    tensors = {f"state/{name}": tensor for name, tensor in plain_state(model).items()}
    tensors |= {f"scale/{name}": table for name, table in scale_tables(model).items()}
    arrays: dict[str, np.ndarray[Any, Any]] = {name: t.detach().cpu().numpy() for name, t in tensors.items()}
    arrays |= {f"bits/{name}": bits for name, bits in bitmap.layers.items()}
    header = {
        "kind": KIND,
        "spec": spec.to_dict(),
        "granularity": bitmap.granularity,
        "scale": first.method,
        "percentile": first.percentile,
        "layers": list(bitmap.layers),
        "meta": dict(meta or {}),
    }
    artifacts.write_tensors(path, arrays, meta=header)


def load_quantized(path: str | Path) -> tuple[nn.Module, ModelSpec, BitMap]:
    """Rebuild what ``save_quantized`` wrote: (model with quantizers in evaluation mode on the CPU, spec, widths).

    Its logits are those of the saved model bit for bit. Raises ``ArtifactError`` for a missing, damaged or other file.
    """
    arrays, header = artifacts.read_tensors(path)
    if header.get("kind") != KIND:
        raise ArtifactError(f"{path}: got a file of kind {header.get('kind')!r}; allowed: {KIND!r}")
    try:
        spec = ModelSpec.from_dict(header["spec"], source=str(path))
        bitmap = BitMap(header["granularity"], {name: arrays[f"bits/{name}"] for name in header["layers"]})
        tables = {name: torch.from_numpy(arrays[f"scale/{name}"]) for name in header["layers"]}
        plugins.load("scale", header["scale"])
        model = build(spec, seed=0)
        state = {n.removeprefix("state/"): torch.from_numpy(a) for n, a in arrays.items() if n.startswith("state/")}
        load_into(model, state, strict=True, source=str(path))
        quantize_model(model, bitmap, scale=header["scale"], percentile=header["percentile"], tables=tables)
    except KeyError as error:
        raise ArtifactError(f"{path}: got no {error.args[0]!r}; allowed: an output of the quantize stage") from None
    except UserError as error:
        message = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise ArtifactError(message) from None
    return model.eval(), spec, bitmap
