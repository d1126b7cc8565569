"""What keeps the runtimes from reporting is undone afterwards, and the user's own choice stands."""

from __future__ import annotations

import os
import sys
import types

import pytest

from fairquant.export import quiet


@pytest.fixture
def onnxruntime(monkeypatch) -> types.SimpleNamespace:
    """A module in the place of onnxruntime that counts how often it was told to be silent."""
    module = types.SimpleNamespace(told=0)
    module.disable_telemetry_events = lambda: setattr(module, "told", module.told + 1)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return module


def test_onnxruntime_is_silenced_before_and_after(onnxruntime, monkeypatch):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    assert quiet.import_onnxruntime() is onnxruntime
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    assert onnxruntime.told == 1


def test_who_wants_reports_gets_them(onnxruntime, monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    quiet.import_onnxruntime()
    assert (os.environ["ORT_DISABLE_TELEMETRY"], onnxruntime.told) == ("0", 0)


def test_openvino_is_imported_without_its_reporter(tmp_path, monkeypatch):
    """A stand-in that notes whether the reporter could be imported."""
    (tmp_path / "openvino.py").write_text(
        "try:\n    import openvino_telemetry\n    REPORTS = True\nexcept ImportError:\n    REPORTS = False\n"
    )
    (tmp_path / "openvino_telemetry.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("openvino", "openvino_telemetry"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert quiet.import_openvino().REPORTS is False
    assert "openvino_telemetry" not in sys.modules
    import openvino_telemetry

    assert quiet.import_openvino().REPORTS is False
    assert sys.modules["openvino_telemetry"] is openvino_telemetry
    monkeypatch.delitem(sys.modules, "openvino_telemetry")
    monkeypatch.delitem(sys.modules, "openvino")
