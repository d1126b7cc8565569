"""Packed files with a right checksum and wrong content: found by what the content says, in one line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fairquant.errors import ArtifactError
from fairquant.export.packed import load_packed
from fairquant.export.packing import container
from fairquant.quantize.state import save_quantized
from tests.export.quantized_models import SMALL, packed_bytes, quantized

Change = Callable[[np.ndarray], np.ndarray]
Refused = Callable[..., str]


@pytest.fixture
def parts(tmp_path: Path) -> Callable[[str], tuple[dict[str, str], dict[str, np.ndarray]]]:
    """Return a function from the kind of a packed file to its texts and arrays."""

    def read(kind: str) -> tuple[dict[str, str], dict[str, np.ndarray]]:
        (tmp_path / "right").write_bytes(packed_bytes(kind))
        return container.read(tmp_path / "right")

    return read


@pytest.fixture
def line_for(tmp_path: Path) -> Refused:
    """Return a function from texts and arrays to the line a reader refuses them with, without the file's name."""

    def refused(texts: dict[str, str], arrays: dict[str, np.ndarray]) -> str:
        path = tmp_path / "wrong"
        container.write(path, texts, arrays)
        with pytest.raises(ArtifactError) as caught:
            load_packed(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
        return str(caught.value).removeprefix(f"{path}: ")

    return refused


ARRAYS: list[tuple[str, str, Change, str]] = [
    ("per_channel", "steps", lambda a: a[1:], "steps (float32); allowed: "),
    ("per_channel", "steps", lambda a: a.astype(float), " steps (float64); allowed: "),
    ("per_channel", "steps", lambda a: -a, "got a step size that is not above 0; allowed: positive numbers"),
    ("per_channel", "steps", lambda a: a * np.inf, "got steps that are NaN or infinite; allowed: finite numbers"),
    ("per_channel", "floats", lambda a: a * np.nan, "got floats that are NaN or infinite; allowed: finite"),
    ("per_channel", "codes.3", lambda a: a[1:], " bytes of 3-bit codes; allowed: "),
    ("per_channel", "codes.3", lambda a: a.astype(np.int32), "got codes of 3 bits as int32; allowed: U8"),
    ("per_channel", "codes.3", lambda a: a | 63, "got the code 7 of 3 bits; allowed: 0 to 6 (symmetric)"),
    (
        "books_of_channels",
        "codes.5",
        lambda a: np.append(np.full(5, 255, np.uint8), a[5:]),
        "got the code 31 in a codebook of 27 ",
    ),
    ("books_of_layers", "centroids", lambda a: a[:-1], " centroids (float32); allowed: "),
    ("per_channel", "widths", lambda a: a[:-1], "got a width map that ends early; allowed: one width for each"),
    ("per_channel", "rest.F32", lambda a: a[:-1], "numbers (float32) in rest.F32; allowed: "),
    ("per_channel", "rest.F32", lambda a: a * np.nan, "got NaN in rest.F32; allowed: numbers"),
    ("per_channel", "rest.I64", lambda a: a.view(np.float64), "(float64) in rest.I64; allowed: 19"),
    ("static", "activation_steps", lambda a: a[1:], " activation_steps (float32); allowed: "),
    ("static", "activation_steps", lambda a: -a, "activation scale: got -"),
    ("static", "activation_zero_points", lambda a: a + 300, "activation zero point: got 300; allowed: a whole"),
]


@pytest.mark.parametrize(("kind", "name", "change", "line"), ARRAYS)
def test_arrays(parts, line_for, kind, name, change, line):
    texts, arrays = parts(kind)
    assert line in line_for(texts, {**arrays, name: change(arrays[name])})


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("widths", "got no widths; allowed: a width map, U8"),
        ("codes.16", "got no tensor codes.16; allowed: one for each width"),
        ("floats", "got 0 floats (float32); allowed: "),
        ("rest.I64", "got no tensor 'rest.I64'; allowed: rest.F32, rest.I64"),
    ],
)
def test_arrays_that_are_not_there(parts, line_for, name, line):
    texts, arrays = parts("per_channel")
    del arrays[name]
    assert line_for(texts, arrays).startswith(line)


@pytest.mark.parametrize("name", ["codes.4", "codes.17", "centroids", "activation_steps", "rest.F64", "ghost"])
def test_arrays_too_many(parts, line_for, name):
    texts, arrays = parts("per_channel")
    assert "; allowed: " in line_for(texts, {**arrays, name: np.ones(3, np.float32)})


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('"format":1', '"format":2', "layout: got format 2; allowed: 1, what this version reads"),
        ('"format":1', '"format":true', "layout: got format True; allowed: 1, what this version reads"),
        ('"format":1', '"format":1,"more":1', "layout: got keys ['activations',"),
        ("per_channel", "per_layer", "layout: got granularity 'per_layer'; allowed: per_tensor | per_channel | per_p"),
        ("per_channel", "per_param", "got a width map that ends early"),
        ('"symmetric"', '["symmetric"]', "layout: got scheme ['symmetric']; allowed: symmetric | asymmetric"),
        ('"codebook":null', '"codebook":"row"', "layout: got codebook 'row'; allowed: null | channel | tensor"),
        ('"kept"', '"folded"', "got resnet20 with other tensors than the installed libraries give it; allowed: the"),
        ('"kept"', "1", "layout: got batch_norm 1; allowed: kept | folded"),
        ('"architecture":"', '"architecture":"x', "layout: got architecture 'x"),
        ('"activations":null', '"activations":{}', "layout: got activations {}; allowed: null, or bits, scheme,"),
        ("{", "[", "got the text "),
    ],
)
def test_layouts(parts, line_for, old, new, line):
    texts, arrays = parts("per_channel")
    texts["packed"] = texts["packed"].replace(old, new, 1)
    assert line_for(texts, arrays).startswith(line)


def test_codebooks_have_no_zero_points(parts, line_for):
    texts, arrays = parts("books_of_layers")
    texts["packed"] = texts["packed"].replace('"symmetric"', '"asymmetric"')
    assert line_for(texts, arrays) == "layout: got scheme 'asymmetric'; allowed: symmetric, with codebooks"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('"bits":8', '"bits":17', "activation bits: got 17; allowed: 2 to 16"),
        ('"bits":8', '"bits":8.0', "layout: got activations.bits 8.0; allowed: int"),
        ('"dynamic":false', '"dynamic":0', "layout: got activations.dynamic 0; allowed: bool"),
        ('"minmax"', '"guess"', "observer: got 'guess'; allowed: "),
        ('"points":"all"', '"points":"some"', "layout: got activations.points 'some'; allowed: all | layers"),
        ('"conv1.input"', '"ghost"', "activation points: got a graph with conv1.input; allowed"),
        ('"conv1.input"', '"layer1.0.conv1.input"', "layout: got activations.names "),
        ('"conv1.input"', "3", "layout: got activations.names "),
    ],
)
def test_activations(parts, line_for, old, new, line):
    texts, arrays = parts("static")
    assert old in texts["packed"]
    texts["packed"] = texts["packed"].replace(old, new, 1)
    assert line_for(texts, arrays).startswith(line)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("resnet20", "resnet99", "model.name: got 'resnet99'; allowed: a torchvision or timm model name"),
        ("resnet20", "resnet32", "got resnet32 with other tensors than the installed libraries give it"),
        ('"size": 8', '"size": 4', "data.image_size: got 4 with model.name 'resnet20'; allowed: 8 or more"),
        ('"malignant"', '"malignant", "other"', "got resnet20 with other tensors than the installed libraries"),
        ('"provenance": "0', '"provenance": "x', "metadata: provenance: got "),
    ],
)
def test_metadata(parts, line_for, old, new, line):
    texts, arrays = parts("per_channel")
    assert old in texts["fairquant"]
    texts["fairquant"] = texts["fairquant"].replace(old, new, 1)
    assert line_for(texts, arrays).startswith(line)


def test_texts_of_another_kind(parts, line_for):
    texts, arrays = parts("per_channel")
    del texts["packed"]
    assert line_for(texts, arrays) == "got the texts ['fairquant']; allowed: fairquant, packed"


def test_the_file_of_the_quantize_stage(tmp_path):
    save_quantized(tmp_path / "q.safetensors", quantized(SMALL), SMALL)
    with pytest.raises(
        ArtifactError, match="got a safetensors file without a sha256 among its texts; allowed: a packed"
    ):
        load_packed(tmp_path / "q.safetensors")
