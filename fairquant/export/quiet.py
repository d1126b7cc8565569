"""onnxruntime and openvino, imported so that nobody is told: of the run, the model or the machine.

Both report to their makers by default. onnxruntime (1.31) creates an identifier of the machine and a queue of events
below ~/.cache as soon as it is imported, and uploads them; ``ORT_DISABLE_TELEMETRY=1`` in the environment before that
forbids all of it (its Privacy.md). openvino sends an event when it is imported and keeps an identifier in ~/intel, by
way of the package ``openvino_telemetry``; where that cannot be imported it uses a stub of its own. Whoever wants the
reports sets ``ORT_DISABLE_TELEMETRY=0``, or imports openvino first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

REPORTER = "openvino_telemetry"


def import_onnxruntime() -> Any:
    """Return the module onnxruntime; ``ImportError`` where it is not installed."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    if os.environ["ORT_DISABLE_TELEMETRY"] == "1":
        onnxruntime.disable_telemetry_events()  # for Windows, and for whoever imported it before
    return onnxruntime


def import_openvino() -> Any:
    """Return the module openvino; ``ImportError`` where it is not installed."""
    with _unimportable(REPORTER):
        import openvino

    return openvino


@contextmanager
def _unimportable(name: str) -> Iterator[None]:
    """Make ``import name`` fail as if it were not installed; afterwards all is as it was."""
    known = {name: sys.modules[name]} if name in sys.modules else {}
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        sys.modules.update(known)
