"""How a packed file is laid out, as its JSON says it: what every reader must know before it reads an array.

    {"format": 1, "granularity": "per_channel", "scheme": "symmetric", "codebook": null, "batch_norm": "kept",
     "architecture": "<sha256>", "activations": null}

``activations`` is null where they are not quantized, else what ``quantize.activation_state`` says of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from fairquant.allocate.bitmap import Granularity, Per, Scheme
from fairquant.errors import ArtifactError
from fairquant.export.packing.container import parse_object, shortened

FORMAT = 1
"""Version of the layout; a reader refuses others."""
BATCH_NORM = ("kept", "folded")
_KEYS = ("activations", "architecture", "batch_norm", "codebook", "format", "granularity", "scheme")
_SHA256 = re.compile("[0-9a-f]{64}")
_ACTIVATIONS: dict[str, tuple[type, ...]] = {
    "bits": (int,), "scheme": (str,), "observer": (str,), "momentum": (int, float), "percentile": (int, float),
    "points": (str,), "dynamic": (bool,), "names": (list,),
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """The layout of one file.

    Attributes:
        granularity: what has a width of its own.
        scheme: of the grids.
        codebook: channel | tensor where there are codebooks instead of grids.
        folded: whether batch norm is folded into the layers.
        activations: what ``attach_activations`` was asked for, and the ``names`` of the points; None: fp32.
        architecture: ``plain_tensors.architecture`` of the model.
    """

    granularity: Granularity
    scheme: Scheme
    codebook: Per | None
    folded: bool
    activations: Mapping[str, Any] | None
    architecture: str

    def to_json(self) -> str:
        """Return the text that ``from_json`` reads; it depends on the values alone."""
        value = {
            "format": FORMAT,
            "granularity": self.granularity,
            "scheme": self.scheme,
            "codebook": self.codebook,
            "batch_norm": BATCH_NORM[self.folded],
            "architecture": self.architecture,
            "activations": None if self.activations is None else dict(self.activations),
        }
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Header:
        """Read what ``to_json`` wrote; ``ArtifactError`` for anything else."""
        value = parse_object(text)
        found = value.get("format")
        _require(type(found) is int and found == FORMAT, "format", found, f"{FORMAT}, what this version reads")
        _require(sorted(value) == list(_KEYS), "keys", sorted(value), ", ".join(_KEYS))
        for key, allowed in (("granularity", get_args(Granularity)), ("scheme", get_args(Scheme)),
                             ("codebook", (None, *get_args(Per))), ("batch_norm", BATCH_NORM)):  # fmt: skip
            _require(
                value[key] in list(allowed),
                key,
                value[key],
                " | ".join("null" if a is None else str(a) for a in allowed),
            )
        on_grid = value["codebook"] is None
        _require(on_grid or value["scheme"] == "symmetric", "scheme", value["scheme"], "symmetric, with codebooks")
        digest = value["architecture"]
        _require(isinstance(digest, str) and bool(_SHA256.fullmatch(digest)), "architecture", digest, "a sha256")
        folded = value["batch_norm"] == BATCH_NORM[True]
        activations = _activations(value["activations"])
        return cls(value["granularity"], value["scheme"], value["codebook"], folded, activations, digest)


def _activations(value: Any) -> Mapping[str, Any] | None:
    if value is None:
        return None
    _require(isinstance(value, dict) and sorted(value) == sorted(_ACTIVATIONS), "activations", value,
             f"null, or {', '.join(_ACTIVATIONS)}")  # fmt: skip
    for key, kinds in _ACTIVATIONS.items():
        _require(type(value[key]) in kinds, f"activations.{key}", value[key], kinds[0].__name__)
    names = value["names"]
    different = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    _require(different, "activations.names", names, "different names")
    _require(value["points"] in ("all", "layers"), "activations.points", value["points"], "all | layers")
    return dict(value)


def _require(condition: bool, key: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ArtifactError(f"layout: got {key} {shortened(value)}; allowed: {allowed}")
