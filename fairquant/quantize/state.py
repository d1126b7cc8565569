"""A quantized model in one file: full-precision weights and buffers, widths, step sizes, and how to rebuild it.

Keys: ``state/<plain state-dict name>`` (latent weights, biases, batch-norm statistics …), ``bits/<layer>`` uint8,
``scale/<layer>`` float (out | 1, columns), ``zero/<layer>`` int32 of the same shape where weights are asymmetric. The
header's JSON holds kind, spec, granularity, scale, percentile, layers, scheme where it is asymmetric, and
batch_norm where it is folded. Codebooks take the place of scales: ``codes/<layer>`` uint8 of the weight's shape and
``centroids/<layer>`` float, flat (see ``CodebookQuantizer``), with codebook (channel | tensor) in the header instead of
scale and percentile. Quantized activations add what ``quantize.activation_state`` says.
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
from fairquant.models.fold import is_folded
from fairquant.models.spec import ModelSpec
from fairquant.models.weights import load_into
from fairquant.quantize.activate import is_activation_key
from fairquant.quantize.activation_state import activation_state, with_activation_state
from fairquant.quantize.attach import (
    ORIGINAL,
    QUANTIZER,
    bitmap_of,
    codebooks,
    quantize_model,
    quantizers,
    scale_tables,
    zero_point_tables,
)
from fairquant.quantize.folded import skeleton

KIND = "quantized model"


def plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict of the full-precision model under the quantizers, with its own key names."""
    return {
        name.removesuffix(ORIGINAL) + ".weight" if name.endswith(ORIGINAL) else name: tensor
        for name, tensor in model.state_dict().items()
        if QUANTIZER + "." not in name and not is_activation_key(name)
    }


def save_quantized(
    path: str | Path, model: nn.Module, spec: ModelSpec, *, meta: Mapping[str, Any] | None = None
) -> None:
    """Write ``model`` (with quantizers) to ``path``, atomically; bytes depend on the content alone.

    ``meta`` holds further plain values for the header's ``meta`` key. Raises ``UserError`` without quantizers.
    """
    bitmap = bitmap_of(model)
    tensors = {f"state/{name}": tensor for name, tensor in plain_state(model).items()}
    tensors |= {f"scale/{name}": table for name, table in scale_tables(model).items()}
    tensors |= {f"zero/{name}": table for name, table in zero_point_tables(model).items()}
    for name, coded in codebooks(model).items():
        tensors |= {f"codes/{name}": coded.codes, f"centroids/{name}": coded.centroids}
    arrays: dict[str, np.ndarray[Any, Any]] = {name: t.detach().cpu().numpy() for name, t in tensors.items()}
    arrays |= {f"bits/{name}": bits for name, bits in bitmap.layers.items()}
    header: dict[str, Any] = {
        "kind": KIND,
        "spec": spec.to_dict(),
        "granularity": bitmap.granularity,
        "layers": list(bitmap.layers),
        "meta": dict(meta or {}),
    }
    if bitmap.codebook is None:
        first = next(iter(quantizers(model).values()))
        header |= {"scale": first.method, "percentile": first.percentile}
    else:
        header |= {"codebook": bitmap.codebook}
    header |= {"scheme": bitmap.scheme} if bitmap.scheme != "symmetric" else {}
    header |= {"batch_norm": "folded"} if is_folded(model) else {}
    activations, grids = activation_state(model)
    header |= {"activations": activations} if activations else {}
    artifacts.write_tensors(path, arrays | grids, meta=header)


def load_quantized(path: str | Path) -> tuple[nn.Module, ModelSpec, BitMap]:
    """Rebuild what ``save_quantized`` wrote: (model with quantizers in evaluation mode on the CPU, spec, widths).

    Its logits are those of the saved model bit for bit. Raises ``ArtifactError`` for a missing, damaged or other file.
    """
    arrays, header = artifacts.read_tensors(path)
    if header.get("kind") != KIND:
        raise ArtifactError(f"{path}: got a file of kind {header.get('kind')!r}; allowed: {KIND!r}")
    try:
        spec = ModelSpec.from_dict(header["spec"], source=str(path))
        widths = {name: arrays[f"bits/{name}"] for name in header["layers"]}
        scheme, codebook = header.get("scheme", "symmetric"), header.get("codebook")
        bitmap = BitMap(header["granularity"], widths, scheme=scheme, codebook=codebook)
        model = skeleton(spec, folded=header.get("batch_norm") == "folded")
        state = {n.removeprefix("state/"): torch.from_numpy(a) for n, a in arrays.items() if n.startswith("state/")}
        load_into(model, state, strict=True, source=str(path))
        _attach(model, bitmap, arrays, header)
        model = with_activation_state(model, header.get("activations"), arrays)
    except KeyError as error:
        raise ArtifactError(f"{path}: got no {error.args[0]!r}; allowed: an output of the quantize stage") from None
    except UserError as error:
        message = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise ArtifactError(message) from None
    return model.eval(), spec, bitmap


def _attach(
    model: nn.Module, bitmap: BitMap, arrays: Mapping[str, np.ndarray[Any, Any]], header: Mapping[str, Any]
) -> None:
    """Put the saved grids, or codebooks, on the layers of ``model``; ``KeyError`` names what the file lacks."""

    def read(kind: str) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(arrays[f"{kind}/{name}"]) for name in bitmap.layers}

    if bitmap.codebook is not None:
        codes, centroids = read("codes"), read("centroids")
        quantize_model(model, bitmap, books={name: (codes[name], centroids[name]) for name in bitmap.layers})
        return
    plugins.load("scale", header["scale"])
    quantize_model(
        model,
        bitmap,
        scale=header["scale"],
        percentile=header["percentile"],
        tables=read("scale"),
        zero_points=read("zero") if bitmap.scheme != "symmetric" else None,
    )
