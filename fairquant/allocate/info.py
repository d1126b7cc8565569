"""What the assign stage knows of a model without torch: models/pretrained.json as a typed object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairquant.errors import ArtifactError


@dataclass(frozen=True)
class ModelInfo:
    """Quantizable layers in model order, with what their sizes and costs are computed from.

    ``shapes``: layer → weight shape (out, …); ``kinds``: layer → conv2d | linear; ``roles``: first | last | classifier
    → layer; ``rest``: parameters and float buffers outside quantizable weights (biases, batch norm, …), a count;
    ``macs``: layer → multiply-accumulates of one forward pass of one image.
    """

    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, str]
    roles: Mapping[str, str]
    rest: int
    macs: Mapping[str, int]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelInfo:
        """Read the parsed models/pretrained.json; a key it lacks raises ``ArtifactError``."""
        try:
            layers = value["layers"]
            return cls(
                shapes={name: tuple(int(side) for side in layer["shape"]) for name, layer in layers.items()},
                kinds={name: str(layer["kind"]) for name, layer in layers.items()},
                roles=dict(value["roles"]),
                rest=int(value["parameters"]["rest"]),
                macs={name: int(value["macs"][name]) for name in layers},
            )
        except KeyError as error:
            raise ArtifactError(
                f"models/pretrained.json: got no {error.args[0]!r}; allowed: a file written by the pretrain stage"
            ) from None
