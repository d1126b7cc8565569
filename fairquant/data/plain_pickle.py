"""Read a pickle of plain values and byte arrays without running anything that the file names.

A pickle is a program: whatever callable it names is called while it is read. Some data sets are published in no other
form. Here every name is looked up in a short table, and what stands behind them is not numpy's code but inert
records that only keep what they are given; the array is made afterwards, from a checked shape and the bytes. Any other
name, and any array that is not plain unsigned bytes, is refused.

Python 2's pickles (as published) and Python 3's are read alike; text and byte strings both become ``str``.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairquant.errors import DataError


@dataclass
class ByteArray:
    """What a pickled uint8 array in C order holds: its shape and its bytes."""

    shape: tuple[int, ...] = ()
    content: bytes = b""

    def __setstate__(self, state: Any) -> None:
        """Take over (version, shape, type, Fortran order, bytes) as numpy pickles them up to protocol 4."""
        _, shape, kind, fortran, content = state
        self._fill(shape, kind, "F" if fortran else "C", content)

    def _fill(self, shape: Any, kind: Any, order: Any, content: Any) -> ByteArray:
        if not isinstance(kind, _Kind) or kind.name != "u1" or order != "C":
            raise pickle.UnpicklingError("an array of other than unsigned bytes in C order")
        if not isinstance(shape, tuple) or not all(type(length) is int and length >= 0 for length in shape):
            raise pickle.UnpicklingError("an array with a strange shape")
        self.shape = shape
        self.content = content.encode("latin-1") if isinstance(content, str) else bytes(memoryview(content))
        return self


@dataclass
class _Kind:
    """A pickled dtype, by name."""

    name: str

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like do not matter for single bytes."""


class _ArrayName:
    """Stands for the class ``numpy.ndarray``, which is only ever handed to ``_reconstruct``."""


def _reconstruct(kind: Any, shape: Any, code: Any) -> ByteArray:
    return ByteArray()


def _frombuffer(content: Any, kind: Any, shape: Any, order: Any) -> ByteArray:
    """Stand in for numpy's function of that name, by which protocol 5 writes arrays."""
    return ByteArray()._fill(shape, kind, order, content)


def _dtype(name: Any, *flags: Any) -> _Kind:
    return _Kind(name if isinstance(name, str) else "")


def _encode(text: Any, encoding: Any) -> bytes:
    """Stand in for ``_codecs.encode``, by which Python 3 writes bytes in old protocols; always Latin-1."""
    return str(text).encode("latin-1")


KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("numpy", "ndarray"): _ArrayName,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
}


class _PlainUnpickler(pickle.Unpickler):
    """Knows the names in ``KNOWN`` and no other."""

    def find_class(self, module: str, name: str) -> Any:
        """Return our stand-in for a name; refuse the others."""
        try:
            return KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"the name {module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to things outside the file."""
        raise pickle.UnpicklingError("a reference to something outside the file")


def read_plain_pickle(path: Path) -> Any:
    """Return what the pickle holds, arrays as ``ByteArray``.

    Raises:
        DataError: the file is no pickle, is cut short, or holds anything but plain values and byte arrays.
    """
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="latin-1").load()
    except OSError as error:
        raise DataError(f"{path}: not readable ({error.strerror})") from None
    except pickle.UnpicklingError as error:
        text = " ".join(str(error).split())
        raise DataError(f"{path}: refused, got {text}; allowed: a pickle of plain values and arrays of bytes") from None
    except Exception as error:  # a damaged pickle makes the reader raise almost anything
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DataError(f"{path}: not a whole pickle ({text}); allowed: the file as published") from None
