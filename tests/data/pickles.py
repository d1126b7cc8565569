"""Write pickles as Python 2 wrote them: the published CIFAR-10 batches hold its byte strings and old module names."""

from __future__ import annotations

import io
import pickle
import struct
from typing import Any


class _Pickler(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Writes text and bytes alike as Python 2's ``str`` (opcode BINSTRING), never memoized."""

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def _save_string(self, value: str | bytes) -> None:
        data = value.encode("latin-1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)

    dispatch[str] = dispatch[bytes] = _save_string


def python2_dumps(value: Any) -> bytes:
    """Return ``value`` as Python 2 with the numpy of its time pickled it (protocol 2)."""
    file = io.BytesIO()
    _Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
