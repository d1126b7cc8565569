"""The metadata of an ONNX file, read without onnx, torch or a runtime, whatever the size of the model.

An ONNX file is a protocol buffer of type ModelProto: fields, each a key (number · 8 + wire type) and a value. The graph
is field 7; each entry of ``metadata_props`` is a field 14, which holds a key (1) and a value (2). All other fields are
skipped, not read.

Source: onnx.proto of the ONNX specification; protobuf's encoding, https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from fairquant.errors import ArtifactError
from fairquant.export.metadata import KEY, ModelMetadata

_GRAPH, _ENTRY, _ENTRY_KEY, _ENTRY_VALUE = 7, 14, 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_onnx_metadata(path: str | Path) -> ModelMetadata:
    """Return what an ONNX file of this project says of itself.

    Raises ``ArtifactError``, one line that names the file, where it cannot be read, is no whole ONNX file, or was not
    written by this project.
    """
    try:
        with Path(path).open("rb") as file:
            text = _find(file)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: not found") from None
    except OSError as error:
        raise ArtifactError(f"{path}: not readable ({error.strerror})") from None
    except ValueError as error:
        raise ArtifactError(f"{path}: not a whole ONNX file ({error})") from None
    if text is None:
        raise ArtifactError(f"{path}: got an ONNX file without fairquant metadata; allowed: one the export stage wrote")
    return ModelMetadata.from_json(text, source=str(path))


def _find(file: BinaryIO) -> str | None:
    """Return the text of our entry, None where there is none; ``ValueError`` says why this is no ONNX file."""
    text, graphs = None, 0
    for number, length in _fields(file):
        graphs += number == _GRAPH
        if number != _ENTRY:
            file.seek(length, os.SEEK_CUR)
            continue
        entry = BytesIO(file.read(length))
        parts = {part: entry.read(size).decode("utf-8") for part, size in _fields(entry)}
        if parts.get(_ENTRY_KEY) == KEY:
            text = parts.get(_ENTRY_VALUE, "")
    if graphs != 1:
        raise ValueError(f"it holds {graphs} graphs")
    return text


def _fields(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield (number, length) of each field, with ``file`` at its value, which the caller passes over.

    Numbers are passed over here: theirs come with length 0.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    while (start := file.tell()) < end:
        key = _varint(file)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            _varint(file)
        length = {_VARINT: 0, _FIXED64: 8, _FIXED32: 4}.get(wire)
        if wire == _BYTES:
            length = _varint(file)
        if length is None or number == 0:
            raise ValueError(f"no field at byte {start}")
        if file.tell() + length > end:
            raise ValueError(f"it ends within the field at byte {start}")
        yield number, length


def _varint(file: BinaryIO) -> int:
    """Return the number at the file's position: 7 bits a byte, the lowest first; the last byte is below 128."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends within a number")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("it holds a number of more than ten bytes")
