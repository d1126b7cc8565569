"""The metadata of ONNX files that the onnx package wrote, and of files that are none."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from fairquant.errors import ArtifactError
from fairquant.export.metadata import KEY
from fairquant.export.onnx_metadata import read_onnx_metadata
from tests.export.test_metadata import MADE


def onnx_file(path: Path, entries: dict[str, str], *, weights: int = 3) -> Path:
    """Write a model that returns a constant of ``weights`` numbers, with ``entries`` as metadata."""
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [weights], [1.0] * weights)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [weights])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "graph", [], [output], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    helper.set_model_props(model, entries)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("weights", [1, 100, 20_000])
def test_what_onnx_wrote_is_found_among_other_entries(tmp_path, weights):
    path = onnx_file(tmp_path / "m.onnx", {"a": "b", KEY: MADE.to_json(), "zz": ""}, weights=weights)
    assert read_onnx_metadata(path) == MADE


def test_a_model_of_somebody_else(tmp_path):
    path = onnx_file(tmp_path / "m.onnx", {"other": MADE.to_json()})
    with pytest.raises(ArtifactError) as error:
        read_onnx_metadata(path)
    assert str(error.value) == (
        f"{path}: got an ONNX file without fairquant metadata; allowed: one the export stage wrote"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it holds 0 graphs"),
        (b"hello world, this is a text", "no field at byte 2"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "no field at byte "),
        (b"\xff" * 20, "it holds a number of more than ten bytes"),
        (b"\x3a\x00\x3a\x00", "it holds 2 graphs"),
        (b"\x3a", "it ends within a number"),
        (b"\x3a\x05abc", "it ends within the field at byte 0"),
        (b"\x3a\x00\x72\x04\x0a\x02\xff\xfe", "'utf-8' codec can't decode"),
    ],
)
def test_other_files_are_refused(tmp_path, content, reason):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as error:
        read_onnx_metadata(path)
    assert str(error.value).startswith(f"{path}: not a whole ONNX file ({reason}")


def test_a_truncated_file_is_never_read_as_whole(tmp_path):
    whole = onnx_file(tmp_path / "m.onnx", {KEY: MADE.to_json()}).read_bytes()
    path = tmp_path / "part.onnx"
    for length in {*range(0, len(whole), 9), *range(len(whole) - 30, len(whole))}:
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match="not a whole ONNX file|without fairquant metadata"):
            read_onnx_metadata(path)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(ArtifactError, match=r"nothing\.onnx: not found$"):
        read_onnx_metadata(tmp_path / "nothing.onnx")
    with pytest.raises(ArtifactError, match=r": not readable \(Is a directory\)$"):
        read_onnx_metadata(tmp_path)
