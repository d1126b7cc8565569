"""A safetensors file whose every byte is accounted for, with a checksum: what packed models are written in.

The format is safetensors' (8 bytes: length n of the header, little-endian; n bytes of JSON, padded with spaces; the
tensors without gaps), so any reader of it lists and reads the tensors. Only a part of it is used: one-dimensional
tensors of six types, texts in ``__metadata__``. Files are read here, not by the library, because nothing in a file that
was damaged or made by somebody else may end in anything but one ``ArtifactError``: every length is compared with the
file's before it is believed, so that no more memory is taken than the file is long, and the checksum is compared
before anything is made of the content.

The checksum is the sha256 of, in ascending order of names, each text but itself: a line ``text NAME BYTES`` and the
text in UTF-8; then each tensor: a line ``tensor NAME TYPE NUMBER`` and its bytes. Lines end in one line feed. It
notices damage, not forgery.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from fairquant.artifacts import atomic_path
from fairquant.errors import ArtifactError

Arrays = dict[str, npt.NDArray[Any]]
Texts = dict[str, str]

TYPES = {name: np.dtype(kind) for name, kind in
         (("BOOL", "?"), ("F32", "<f4"), ("F64", "<f8"), ("I32", "<i4"), ("I64", "<i8"), ("U8", "|u1"))}  # fmt: skip
"""The types of tensors, by their names in the file."""
NAMES = {kind: name for name, kind in TYPES.items()}
METADATA = "__metadata__"
CHECKSUM = "sha256"
_LENGTH = 8
_ENTRY = ("data_offsets", "dtype", "shape")


def write(path: str | Path, texts: Mapping[str, str], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write ``texts`` and one-dimensional ``arrays`` that are not empty, atomically; bytes depend on the content alone.

    Wider types come first, so that every tensor is aligned.
    """
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header: dict[str, Any] = {METADATA: {**{k: texts[k] for k in sorted(texts)}, CHECKSUM: checksum(texts, arrays)}}
    end = 0
    for name in names:
        array = arrays[name]
        start, end = end, end + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype], "shape": [array.size], "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH)
    with atomic_path(path) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH, "little") + text)
        for name in names:
            file.write(np.ascontiguousarray(arrays[name]).data)


def checksum(texts: Mapping[str, str], arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the sha256 of the content, in hex."""
    found = hashlib.sha256()
    for name in sorted(texts):
        text = texts[name].encode()
        found.update(f"text {name} {len(text)}\n".encode())
        found.update(text)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"tensor {name} {NAMES[array.dtype]} {array.size}\n".encode())
        found.update(array.view(np.uint8).data)
    return found.hexdigest()


def read(path: str | Path) -> tuple[Texts, Arrays]:
    """Read what ``write`` wrote: (texts without the checksum, arrays), read-only views of the file's bytes.

    Raises ``ArtifactError``, without the file's name but where it cannot be opened, for anything else.
    """
    data = _bytes_of(path)
    length = int.from_bytes(data[:_LENGTH], "little")
    if len(data) < _LENGTH or length > len(data) - _LENGTH:
        raise ArtifactError(f"got {len(data)} bytes that begin no header; allowed: a packed model")
    header = _header(data[_LENGTH : _LENGTH + length])
    texts = _texts(header.pop(METADATA, None))
    arrays = _arrays(header, data, _LENGTH + length)
    given = texts.pop(CHECKSUM, None)
    try:
        found = checksum(texts, arrays)
    except UnicodeEncodeError:  # JSON's escapes may hold half a character
        raise ArtifactError("got names that are not Unicode; allowed: a packed model") from None
    if given != found:
        raise ArtifactError(f"got content of sha256 {found}; allowed: {shortened(given)}, which it was written with")
    return texts, arrays


def _bytes_of(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ArtifactError(f"{path}: not found; run the stage that writes it (dvc repro)") from None
    except OSError as error:
        raise ArtifactError(f"{path}: not readable ({error.strerror}); allowed: a file") from None


def _header(text: bytes) -> dict[str, Any]:
    try:
        return parse_object(text.decode())
    except UnicodeDecodeError:
        raise ArtifactError("got a header that is not UTF-8; allowed: a packed model") from None


def parse_object(text: str) -> dict[str, Any]:
    """Return the JSON object that ``text`` is; ``ArtifactError`` for anything else, and where a key stands twice."""
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError):  # not JSON, a number of 5,000 digits
        raise ArtifactError(f"got the text {shortened(text)}; allowed: JSON") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"got {shortened(value)}; allowed: a JSON object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key stands twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _texts(value: Any) -> Texts:
    if (
        not isinstance(value, dict)
        or not all(isinstance(text, str) for text in value.values())
        or CHECKSUM not in value
    ):
        raise ArtifactError(f"got a safetensors file without a {CHECKSUM} among its texts; allowed: a packed model")
    return dict(value)


def _arrays(header: Mapping[str, Any], data: bytes, start: int) -> Arrays:
    """Return the arrays of ``header``, which must fill ``data`` from ``start`` to its end without gaps."""
    arrays: Arrays = {}
    place = 0
    for name, entry in sorted(header.items(), key=lambda item: _first_byte(*item)):
        kind, count, (first, last) = TYPES[entry["dtype"]], entry["shape"][0], entry["data_offsets"]
        if first != place or last - first != count * kind.itemsize or last > len(data) - start:
            raise ArtifactError(
                f"got the tensor {shortened(name)} of {count} × {kind.itemsize} bytes at {first} to {last}; allowed: "
                f"from {place}, within {len(data) - start} bytes"
            )
        array = np.frombuffer(data, kind, count, start + first)
        if kind == np.bool_ and array.view(np.uint8).max() > 1:
            raise ArtifactError(f"got the tensor {shortened(name)} with bytes above 1; allowed: truth values 0 and 1")
        arrays[name], place = array, last
    if place != len(data) - start:
        raise ArtifactError(f"got {len(data) - start} bytes of tensors; allowed: {place}, as the header says")
    return arrays


def _first_byte(name: str, entry: Any) -> int:
    """Return where a tensor begins; ``ArtifactError`` for a description that is none."""
    if isinstance(entry, dict) and sorted(entry) == list(_ENTRY) and entry["dtype"] in list(TYPES):
        shape, offsets = entry["shape"], entry["data_offsets"]
        if _are_sizes(shape, 1) and _are_sizes(offsets, 2) and shape[0] > 0:
            return int(offsets[0])
    raise ArtifactError(
        f"got the tensor {shortened(name)} with {shortened(entry)}; allowed: one dimension, {' | '.join(TYPES)}"
    )


def _are_sizes(value: Any, number: int) -> bool:
    whole = isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value)
    return whole and len(value) == number


def shortened(value: Any) -> str:
    """Return ``value`` in ASCII, on one line, cut after 80 characters."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:79] + "…"
