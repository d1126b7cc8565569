"""What a file says of itself: the text, its way through a file, and everything that can be wrong with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fairquant
from fairquant.allocate.bitmap import BitMap
from fairquant.data.decode import decode
from fairquant.errors import ArtifactError, UserError
from fairquant.export.metadata import FORMAT, RULE, ModelMetadata, Quantization
from fairquant.models.spec import ModelSpec

SPEC = ModelSpec("resnet18", ("benign", "bösartig, 悪性"), 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FACTS = Quantization(4.8, (2, 4, 8), "symmetric", "per_channel", "static", 8)
MADE = ModelMetadata.of(SPEC, groups=["I–III", "IV–VI"], provenance="0a" * 32, quantization=FACTS)


def changed(**keys: Any) -> str:
    """Return MADE's text with some values replaced; a key "input.size" is one of a section."""
    value = json.loads(MADE.to_json())
    for key, new in keys.items():
        *sections, last = key.split("__")
        target = value
        for section in sections:
            target = target[section]
        target[last] = new
    return json.dumps(value)


def test_the_text_is_what_it_says():
    assert json.loads(MADE.to_json()) == {
        "format": 1,
        "project": fairquant.__version__,
        "model": "resnet18",
        "classes": ["benign", "bösartig, 悪性"],
        "groups": ["I–III", "IV–VI"],
        "input": {"size": 32, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "rule": RULE},
        "provenance": "0a" * 32,
        "quantization": {
            "average_bits": 4.8,
            "widths": [2, 4, 8],
            "scheme": "symmetric",
            "granularity": "per_channel",
            "activations": "static",
            "activation_bits": 8,
        },
    }
    assert "\n" not in MADE.to_json() and "悪性" in MADE.to_json()


def test_the_text_comes_back_equal_and_is_the_same_in_another_process():
    assert ModelMetadata.from_json(MADE.to_json()) == MADE
    program = f"""
from fairquant.export.metadata import ModelMetadata
print(ascii(ModelMetadata.from_json({MADE.to_json()!r}).to_json()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ascii(MADE.to_json())


def test_a_full_precision_model_has_no_quantization():
    bare = ModelMetadata.of(SPEC, groups=(), provenance="f" * 64)
    assert "quantization" not in json.loads(bare.to_json())
    assert ModelMetadata.from_json(bare.to_json()) == bare


def test_a_model_of_an_older_version_is_read_and_keeps_its_version():
    assert ModelMetadata.from_json(changed(project="0.0.9")).project == "0.0.9"


class TestFacts:
    SHAPES = {"conv": (2, 3, 1, 1), "fc": (1, 6)}

    def of(self, activations: dict[str, Any] | None = None, **options: Any) -> Quantization:
        layers = {"conv": np.array([2, 8], np.uint8), "fc": np.array([4], np.uint8)}
        return Quantization.of(BitMap("per_channel", layers, **options), self.SHAPES, activations)

    def test_of_widths(self):
        # 3 parameters at 2 bits, 3 at 8, 6 at 4: 54 bits in 12 parameters
        assert self.of() == Quantization(4.5, (2, 4, 8), "symmetric", "per_channel", "fp32", 32)

    @pytest.mark.parametrize(("dynamic", "name"), [(True, "dynamic"), (False, "static")])
    def test_of_activations(self, dynamic, name):
        made = self.of({"bits": 6, "dynamic": dynamic, "scheme": "asymmetric"})
        assert (made.activations, made.activation_bits) == (name, 6)

    def test_of_schemes(self):
        assert self.of(scheme="asymmetric").scheme == "asymmetric"
        assert self.of(codebook="channel").scheme == "codebook"

    def test_the_average_is_kept_as_it_is_written(self):
        made = Quantization(14 / 3, (2, 8), "symmetric", "per_tensor")
        assert made.average_bits == 4.666667

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"average_bits": 33}, "average_bits: got 33; allowed: a number from 0 to 32"),
            ({"average_bits": float("nan")}, "average_bits: got nan; "),
            ({"average_bits": True}, "average_bits: got True; "),
            ({"widths": (8, 2)}, r"widths: got \[8, 2\]; allowed: whole numbers 0 to 32, ascending"),
            ({"widths": (2, 2)}, "ascending"),
            ({"widths": ()}, r"widths: got \[\]; "),
            ({"widths": (2.0,)}, r"widths: got \[2.0\]; "),
            ({"scheme": "ternary"}, "scheme: got 'ternary'; allowed: symmetric | asymmetric | codebook"),
            ({"granularity": ["x"]}, "granularity: got .*per_tensor | per_channel | per_param"),
            ({"activations": "off"}, "activations: got 'off'; allowed: fp32 | static | dynamic"),
            ({"activation_bits": 17}, "activation_bits: got 17; allowed: a whole number from 2 to 16"),
            ({"activations": "fp32"}, "activation_bits: got 8; allowed: 32 where activations are fp32"),
        ],
    )
    def test_bad_values_are_named(self, change, text):
        good = {"average_bits": 4.8, "widths": (2, 8), "scheme": "symmetric", "granularity": "per_channel"}
        with pytest.raises(UserError, match=text):
            Quantization(**{**good, "activations": "static", "activation_bits": 8, **change})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"provenance": "0A" * 32}, "provenance: got '0A0A.*allowed: a sha256, 64 hexadecimal digits"),
        ({"provenance": "abc"}, "provenance: got 'abc'"),
        ({"groups": ("a", "a")}, r"groups: got \['a', 'a'\]; allowed: different names"),
        ({"groups": ("\ud800",)}, r"groups: got \['\\ud800'\]; allowed: different names"),
        ({"groups": (1,)}, r"groups: got \[1\]"),
        ({"project": ""}, "project: got ''; allowed: a version"),
    ],
)
def test_bad_values_are_named(change, text):
    with pytest.raises(UserError, match=text):
        ModelMetadata(**{"spec": SPEC, "groups": (), "provenance": "0" * 64, **change})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON (Expecting value: line 1 column 1 (char 0))"),
        ("[" * 100_000, "not valid JSON ("),
        ('{"format": ' + "9" * 5000 + "}", "not valid JSON ("),
        ("[1]", "text: got 'list'; allowed: a JSON object"),
        ('{"mean": NaN}', "not valid JSON (NaN is no JSON number)"),
        ("{}", f"format: got None; allowed: {FORMAT}, what this version reads"),
        (changed(format=2), "format: got 2; allowed: 1, what this version reads"),
        (changed(format=True), "format: got True; allowed: 1"),
        ('{"format": 1}', "keys: got ['format']; allowed: format, project, model, classes, groups, input, provenance"),
        (changed(extra=1), "keys: got ['classes', 'extra', "),
        (changed(input=3), "input: got 3; allowed: a JSON object"),
        (changed(input={}), "input: got []; allowed: size, mean, std, rule"),
        (changed(input__size="32"), "input.size: got '32'; allowed: a whole number"),
        (changed(input__size=0), "model: got image_size 0; allowed: 1 or more pixels"),
        (changed(input__size=10**9), "image_size: got 1000000000; allowed: up to 65536"),
        (changed(input__mean=[0.5, 0.5]), "model: got mean (0.5, 0.5) and std "),
        (changed(input__mean=[0.5, 0.5, "x"]), "input.mean: got [0.5, 0.5, 'x']; allowed: a list of numbers"),
        (changed(input__mean=[0.5, 0.5, 2000]), "mean and std: got "),
        (changed(input__std=[0.5, 0.5, 0]), "model: got mean (0.485, 0.456, 0.406) and std (0.5, 0.5, 0.0); "),
        (changed(input__std=0.5), "input.std: got 0.5; allowed: a list of numbers"),
        (changed(input__rule="center crop"), f"input.rule: got 'center crop'; allowed: {RULE!r}"),
        (changed(model=None), "model: got None; allowed: a text"),
        (changed(model=""), "model: got ''; allowed: a name"),
        (changed(classes=["a", "a"]), "model: got the classes ['a', 'a']; allowed: two or more different names"),
        (changed(classes=["a", 1]), "classes: got ['a', 1]; allowed: a list of names"),
        (changed(classes="ab"), "classes: got 'ab'; allowed: a list of names"),
        (changed(classes=["a", "\ud800"]), "classes: got ['a', '\\ud800']; allowed: different names"),
        (changed(groups={}), "groups: got {}; allowed: a list of names"),
        (changed(provenance=1), "provenance: got 1; allowed: a text"),
        (changed(quantization=None), "quantization: got None; allowed: a JSON object"),
        (changed(quantization={}), "quantization: got []; allowed: average_bits, widths, scheme, granularity, "),
        (changed(quantization__widths="248"), "widths: got '248'; allowed: a list"),
        (changed(quantization__average_bits="x"), "average_bits: got 'x'; allowed: a number from 0 to 32"),
        (changed(quantization__scheme="a\nb"), "scheme: got 'a\\nb'; allowed: symmetric"),
        (changed(model="x" * 5000, provenance=""), "provenance: got ''"),
        (changed(provenance="x" * 5000), "provenance: got '" + 199 * "x" + "…; allowed"),
    ],
)
def test_a_damaged_text_is_one_line_that_names_file_and_key(text, message):
    with pytest.raises(ArtifactError) as error:
        ModelMetadata.from_json(text, source="model.onnx")
    assert str(error.value).startswith(f"model.onnx: metadata: {message}")
    assert "\n" not in str(error.value)


def test_the_rule_is_what_decoding_does(tmp_path):
    """The three parts of the rule, each seen in the pixels of a small image."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (6, 10), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    path = tmp_path / "grey.png"
    Image.fromarray(pixels).save(path, exif=exif.tobytes())
    turned = Image.fromarray(pixels[::-1, ::-1]).convert("RGB").resize((4, 4), Image.Resampling.LANCZOS)
    assert np.array_equal(decode(path, 4), np.asarray(turned))
    assert RULE == "RGB, EXIF orientation applied, Lanczos to a square"


@pytest.mark.parametrize("module", ["fairquant.export", "fairquant.export.metadata", "fairquant.export.onnx_metadata"])
def test_importing_loads_neither_torch_nor_onnx(module):
    program = f"import sys, {module}; print(*sys.modules)"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert not {"torch", "onnx", "onnxruntime", "openvino"} & set(done.stdout.split())
