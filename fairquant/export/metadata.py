"""What an exported file says of itself: enough to feed the model, to read its answers and to find where it comes from.

One JSON text under the key ``fairquant``: of an ONNX file's ``metadata_props``, of a packed file's header. No torch.

    {"format": 1, "project": "0.1.0", "model": "resnet18", "classes": [...], "groups": [...],
     "input": {"size": 64, "mean": [...], "std": [...], "rule": "..."}, "provenance": "<sha256>",
     "quantization": {"average_bits": 4.8, "widths": [2, 4, 8], "scheme": "symmetric", "granularity": "per_channel",
                      "activations": "static", "activation_bits": 8}}

``mean`` and ``std`` are those of images in [0, 1]; the model takes (x − 255·mean) · (1/(255·std)) of pixels x in 0…255,
float32 (N, 3, size, size). ``quantization`` is absent in a full-precision model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NoReturn, get_args

import fairquant
from fairquant.allocate.bitmap import BitMap, Granularity, Scheme
from fairquant.errors import ArtifactError, UserError
from fairquant.models.spec import ModelSpec

KEY = "fairquant"
"""Where the text stands in a file."""
FORMAT = 1
"""Version of the text; a reader refuses others."""
RULE = "RGB, EXIF orientation applied, Lanczos to a square"
"""How an image file becomes pixels, see ``fairquant.data.decode``; a reader refuses others."""
LARGEST_SIZE = 65536

Activations = Literal["fp32", "static", "dynamic"]
Weights = Literal["symmetric", "asymmetric", "codebook"]

_KEYS = ("format", "project", "model", "classes", "groups", "input", "provenance")
_INPUT = ("size", "mean", "std", "rule")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Quantization:
    """How a model was quantized, whatever found the widths.

    Attributes:
        average_bits: of a quantizable weight, by parameter; in [0, 32], kept to six digits.
        widths: the widths that occur, ascending, from 0 to 32.
        scheme: symmetric | asymmetric | codebook: what weights are rounded to.
        granularity: per_tensor | per_channel | per_param: what has a width of its own.
        activations: fp32 | static | dynamic.
        activation_bits: 2 to 16; 32 where activations are fp32.

    Raises ``UserError`` for a value out of range.

    >>> Quantization(4.8, (2, 4, 8), "symmetric", "per_channel", "static", 8).activation_bits
    8
    """

    average_bits: float
    widths: tuple[int, ...]
    scheme: Weights
    granularity: Granularity
    activations: Activations = "fp32"
    activation_bits: int = 32

    def __post_init__(self) -> None:
        """Round the average and check every value."""
        object.__setattr__(self, "widths", tuple(self.widths))
        _require(_is_number(self.average_bits) and 0 <= self.average_bits <= 32, "average_bits", self.average_bits,
                 "a number from 0 to 32")  # fmt: skip
        object.__setattr__(self, "average_bits", round(float(self.average_bits), 6))
        whole = all(_is_whole(width) and 0 <= width <= 32 for width in self.widths)
        ascending = whole and list(self.widths) == sorted(set(self.widths))
        _require(ascending and len(self.widths) > 0, "widths", list(self.widths), "whole numbers 0 to 32, ascending")
        for key, allowed in (("scheme", Weights), ("granularity", Granularity), ("activations", Activations)):
            names = get_args(allowed)
            _require(getattr(self, key) in names, key, getattr(self, key), " | ".join(names))
        low, high = (32, 32) if self.activations == "fp32" else (2, 16)
        fits = _is_whole(self.activation_bits) and low <= self.activation_bits <= high
        allowed_bits = "32 where activations are fp32" if low == high else "a whole number from 2 to 16"
        _require(fits, "activation_bits", self.activation_bits, allowed_bits)

    @classmethod
    def of(
        cls, bits: BitMap, shapes: Mapping[str, tuple[int, ...]], activations: Mapping[str, Any] | None = None
    ) -> Quantization:
        """Return the facts of widths ``bits`` of layers with weight ``shapes``.

        ``activations`` is what ``fairquant.quantize.activate.activation_settings`` returns; None is fp32.
        """
        scheme: Scheme | Literal["codebook"] = bits.scheme if bits.codebook is None else "codebook"
        average = bits.average(shapes)
        if not activations:
            return cls(average, bits.widths(), scheme, bits.granularity)
        how: Activations = "dynamic" if activations["dynamic"] else "static"
        return cls(average, bits.widths(), scheme, bits.granularity, how, int(activations["bits"]))


@dataclass(frozen=True)
class ModelMetadata:
    """What stands in an exported file beside the model.

    Attributes:
        spec: architecture, classes in the order of the logits, image size, mean and std.
        groups: names of the groups the model was examined on; may be empty.
        provenance: sha256 in hex of what the file was made from.
        quantization: None for a full-precision model.
        project: version of this project that wrote the file.

    Raises ``UserError`` for a value out of range.
    """

    spec: ModelSpec
    groups: tuple[str, ...]
    provenance: str
    quantization: Quantization | None = None
    project: str = fairquant.__version__

    def __post_init__(self) -> None:
        """Check what the parts have not checked themselves."""
        object.__setattr__(self, "groups", tuple(self.groups))
        for key, names in (("classes", self.spec.classes), ("groups", self.groups)):
            _require(_are_names(names), key, list(names), "different names")
        _require(_are_names([self.spec.name]) and self.spec.name != "", "model", self.spec.name, "a name")
        _require(_are_names([self.project]) and self.project != "", "project", self.project, "a version")
        is_hash = isinstance(self.provenance, str) and _SHA256.fullmatch(self.provenance) is not None
        _require(is_hash, "provenance", self.provenance, "a sha256, 64 hexadecimal digits")
        _require(self.spec.image_size <= LARGEST_SIZE, "image_size", self.spec.image_size, f"up to {LARGEST_SIZE}")
        usual = all(math.isfinite(value) and abs(value) <= 1000 for value in (*self.spec.mean, *self.spec.std))
        _require(usual, "mean and std", [list(self.spec.mean), list(self.spec.std)], "finite numbers, up to 1000")

    @classmethod
    def of(
        cls, spec: ModelSpec, *, groups: Iterable[str], provenance: str, quantization: Quantization | None = None
    ) -> ModelMetadata:
        """Return the metadata of a file written now.

        >>> spec = ModelSpec("resnet18", ("benign", "malignant"), 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
        >>> made = ModelMetadata.of(spec, groups=["I", "VI"], provenance=64 * "0")
        >>> ModelMetadata.from_json(made.to_json()) == made
        True
        """
        return cls(spec, tuple(groups), provenance, quantization)

    def to_json(self) -> str:
        """Return the text that ``from_json`` reads; one line that depends on the values alone."""
        spec = self.spec
        value: dict[str, Any] = {
            "format": FORMAT,
            "project": self.project,
            "model": spec.name,
            "classes": list(spec.classes),
            "groups": list(self.groups),
            "input": {"size": spec.image_size, "mean": list(spec.mean), "std": list(spec.std), "rule": RULE},
            "provenance": self.provenance,
        }
        if self.quantization is not None:
            value["quantization"] = {**asdict(self.quantization), "widths": list(self.quantization.widths)}
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, source: str = "metadata") -> ModelMetadata:
        """Read what ``to_json`` wrote; ``source`` names the file in the ``ArtifactError``, one line."""
        try:
            return _read(_object(text))
        except UserError as error:
            raise ArtifactError(" ".join(f"{source}: metadata: {error}".split())) from None


def _read(value: Mapping[str, Any]) -> ModelMetadata:
    """Build the metadata from a JSON object; any mistake is a ``UserError`` that names the key."""
    found = value.get("format")
    _require(_is_whole(found) and found == FORMAT, "format", found, f"{FORMAT}, what this version reads")
    _require_keys("keys", value, _KEYS, optional=("quantization",))
    given = _mapping(value, "input")
    _require_keys("input", given, _INPUT)
    _require(given["rule"] == RULE, "input.rule", given["rule"], repr(RULE))
    _require(_is_whole(given["size"]), "input.size", given["size"], "a whole number")
    mean, std = (_numbers(given[key], f"input.{key}") for key in ("mean", "std"))
    for key in ("project", "model", "provenance"):
        _require(isinstance(value[key], str), key, value[key], "a text")
    spec = ModelSpec(value["model"], _names(value, "classes"), given["size"], mean, std)
    quantization = _quantization(_mapping(value, "quantization")) if "quantization" in value else None
    return ModelMetadata(spec, _names(value, "groups"), value["provenance"], quantization, value["project"])


def _quantization(value: Mapping[str, Any]) -> Quantization:
    _require_keys("quantization", value, tuple(Quantization.__dataclass_fields__))
    _require(isinstance(value["widths"], list), "widths", value["widths"], "a list")
    return Quantization(**{**value, "widths": tuple(value["widths"])})


def _object(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError; so is a number of 5,000 digits
        raise UserError(f"not valid JSON ({error})") from None
    _require(isinstance(value, dict), "text", type(value).__name__, "a JSON object")
    return dict(value)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _mapping(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    _require(isinstance(value[key], dict), key, value[key], "a JSON object")
    return dict(value[key])


def _names(value: Mapping[str, Any], key: str) -> tuple[str, ...]:
    names = value[key]
    _require(isinstance(names, list) and all(isinstance(name, str) for name in names), key, names, "a list of names")
    return tuple(names)


def _numbers(values: Any, key: str) -> tuple[float, ...]:
    _require(isinstance(values, list) and all(_is_number(value) for value in values), key, values, "a list of numbers")
    return tuple(float(value) for value in values)


def _require_keys(key: str, value: Mapping[str, Any], needed: Sequence[str], *, optional: Sequence[str] = ()) -> None:
    missing, unknown = set(needed) - set(value), set(value) - set(needed) - set(optional)
    _require(not missing and not unknown, key, sorted(value), f"{', '.join(needed)}")


def _are_names(names: Iterable[Any]) -> bool:
    """Whether all are different texts that can be written (JSON's escapes may hold half a character)."""
    known = list(names)
    return all(map(_is_text, known)) and len(set(known)) == len(known)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any(0xD800 <= ord(letter) < 0xE000 for letter in value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _require(condition: bool, key: str, value: Any, allowed: str) -> None:
    if not condition:
        shown = repr(value)
        raise UserError(f"{key}: got {shown if len(shown) <= 200 else shown[:200] + '…'}; allowed: {allowed}")
