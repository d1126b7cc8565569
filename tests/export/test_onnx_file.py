"""ONNX files of a small network: what they hold, and that they compute what the simulation does."""

from __future__ import annotations

import copy
import re

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from fairquant.errors import UserError
from fairquant.export.metadata import KEY, ModelMetadata
from fairquant.export.onnx_file import write_float_onnx
from fairquant.export.quiet import import_openvino
from tests.export.small_networks import (
    GROUPS,
    SmallNetwork,
    images,
    lively,
    logits,
    on_the_files_grid,
    operators,
    quantized,
    run,
    spec_of,
    written,
)

LAYERS = ("stem", "body", "skip", "soft", "mix", "head")
STATIC = {"bits": 8}


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    """The network with 8-bit weights and activations, and its file."""
    model, path = quantized(activations=STATIC), tmp_path_factory.mktemp("int8") / "m.onnx"
    return model, path, written(path, model)


def openvino(path, x: Tensor) -> np.ndarray:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "INFERENCE_NUM_THREADS": 1}
    return import_openvino().Core().compile_model(str(path), "CPU", settings)(x.numpy())[0]


def close_but_for_ties(got: np.ndarray, wanted: np.ndarray, *, share: float = 0.9) -> None:
    """A sum rounded in another order may fall on the other side of a tie: then an image differs by a step somewhere."""
    apart = np.abs(got - wanted).max(axis=1) / np.abs(wanted).max()
    assert (apart < 1e-5).mean() >= share and apart.max() < 0.05, np.sort(apart)[-8:]


def test_the_form_names_every_layer(int8):
    form = int8[2]
    assert form.integer_layers == LAYERS and form.float_layers == ()
    assert (form.activations, form.activation_bits) == ("static", 8)


def test_the_file_computes_the_simulation_with_biases_on_their_grid(int8):
    model, path, _ = int8
    x = images(64)
    close_but_for_ties(run(path, x, optimized=False), logits(on_the_files_grid(model, path), x))
    assert (run(path, x).argmax(1) == logits(model, x).argmax(1)).mean() >= 0.95
    assert (openvino(path, x).argmax(1) == logits(model, x).argmax(1)).mean() >= 0.95


def test_what_onnxruntime_fuses(int8):
    """Convolutions that are rounded right away, the residual sum, the linear layers; SiLU comes before rounding."""
    found = operators(int8[1])
    counts = {
        name: found[name] for name in ("QLinearConv", "QLinearAdd", "MatMulIntegerToFloat", "QGemm", "Relu", "Clip")
    }
    assert counts == {
        "QLinearConv": 3, "QLinearAdd": 1, "MatMulIntegerToFloat": 1, "QGemm": 1, "Relu": 0, "Clip": 0
    }, found  # fmt: skip
    assert found["Conv"] == 1 and found["Gelu"] + found["BiasGelu"] == 1, found


def test_what_stands_in_the_file(int8):
    path = int8[1]
    proto = onnx.load(path)
    assert (proto.ir_version, [(entry.domain, entry.version) for entry in proto.opset_import]) == (8, [("", 18)])
    assert [entry.key for entry in proto.metadata_props] == [KEY]
    assert ModelMetadata.from_json(proto.metadata_props[0].value).groups == GROUPS
    [image], [output] = proto.graph.input, proto.graph.output
    for value, name, shape in ((image, "image", ["batch", 3, 16, 16]), (output, "logits", ["batch", 3])):
        sizes = [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        assert (value.name, sizes, value.type.tensor_type.elem_type) == (name, shape, TensorProto.FLOAT)
    names = [node.name for node in proto.graph.node if node.name]
    assert len(names) == len(set(names)) and "stem.Conv" in names and "pool.input.codes" in names
    assert not proto.graph.value_info and not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    for trace in (rb"site-packages", rb"torch\.", rb"\.py\b", rb"File \"", rb"/root", rb"/home", rb"/work", rb"/tmp"):
        assert not re.search(trace, path.read_bytes()), trace


def test_weights_are_the_codes_on_folded_step_sizes(int8):
    """f · Q(w) of each channel in float64; a channel with γ = 0 is gone, one with γ < 0 has its levels mirrored."""
    model, path, _ = int8
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    norm = model.get_submodule("stem_norm")
    factor = (norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)).detach().numpy()
    wanted = model.get_submodule("stem").weight.detach().double().numpy() * factor[:, None, None, None]
    levels = stored["stem.weight/b8"].astype(np.float64)
    np.testing.assert_allclose(levels * stored["stem.weight.scale"][:, None, None, None], wanted, rtol=1e-6)
    assert not levels[0].any() and np.abs(levels[1:]).max() == 127


def test_equal_models_give_equal_bytes(int8, tmp_path):
    model, path, form = int8
    assert written(tmp_path / "again.onnx", copy.deepcopy(model)) == form
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["again.onnx"]


def test_the_model_stays_as_it_was(int8):
    model = quantized(activations=STATIC)
    assert np.array_equal(logits(model, images(4)), logits(int8[0], images(4)))
    assert type(model.get_submodule("stem")).__name__ == "ParametrizedConv2d"


KINDS = {
    "mixed": ({"widths": (0, 1, 2, 4, 8), "activations": STATIC}, LAYERS),
    "per_tensor": ({"widths": (4,), "granularity": "per_tensor", "activations": STATIC}, LAYERS),
    "narrow": ({"activations": {"bits": 4}}, LAYERS),
    "symmetric": ({"activations": {"scheme": "symmetric"}}, LAYERS),
    "narrow symmetric": ({"activations": {"bits": 5, "scheme": "symmetric"}}, LAYERS),
    "layers": ({"activations": {"points": "layers"}}, LAYERS),
    "per_param": ({"widths": (2, 4, 8), "granularity": "per_param", "activations": STATIC}, ()),
    "asymmetric": ({"widths": (4,), "scheme": "asymmetric", "activations": STATIC}, ()),
    "codebook": ({"widths": (3, 32), "codebook": "channel", "activations": STATIC}, ()),
    "wide weights": ({"widths": (10,), "activations": STATIC}, ()),
    "wide": ({"activations": {"bits": 12}}, ()),
    "dynamic": ({"activations": {"dynamic": True}}, ()),
    "dynamic symmetric": ({"activations": {"dynamic": True, "bits": 6, "scheme": "symmetric"}}, ()),
    "weights": ({"widths": (0, 1, 2, 4, 8, 32)}, ()),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_computes_its_simulation(kind, tmp_path):
    arguments, integer = KINDS[kind]
    model, path, x = quantized(**arguments), tmp_path / "m.onnx", images(64)
    form = written(path, model)
    assert form.integer_layers == integer and {*form.integer_layers, *form.float_layers} == set(LAYERS)
    twin = logits(on_the_files_grid(model, path), x)
    for got in (run(path, x, optimized=False), run(path, x), openvino(path, x)):
        assert (got.argmax(1) == twin.argmax(1)).mean() >= 0.95
    close_but_for_ties(run(path, x, optimized=False), twin)
    if not integer:  # onnxruntime's optimizations change nothing but the order of sums
        assert operators(path)["QLinearConv"] + operators(path)["QGemm"] == 0
        close_but_for_ties(run(path, x), twin)


def test_narrow_and_symmetric_grids_are_fused_too(tmp_path):
    for number, asked in enumerate(({"bits": 4}, {"scheme": "symmetric"})):
        written(tmp_path / f"{number}.onnx", quantized(activations=asked))
        found = operators(tmp_path / f"{number}.onnx")
        assert (found["QLinearConv"], found["QLinearAdd"], found["QGemm"]) == (3, 1, 1), found


def test_weights_alone_cost_no_time(tmp_path):
    """All of the unpacking is computed at load: the plain network is left."""
    written(tmp_path / "m.onnx", quantized(widths=(2, 4, 8)))
    found = operators(tmp_path / "m.onnx")
    assert not set(found) & {"Gather", "Cast", "DequantizeLinear", "BatchNormalization"}, found


def test_tensorrt_reads_symmetric_int8(tmp_path):
    model, path, x = quantized(activations=STATIC), tmp_path / "m.onnx", images(64)
    form = written(path, model, flavour="tensorrt")
    assert form.integer_layers == LAYERS
    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert all(stored[node.input[2]].dtype == np.int8 and not stored[node.input[2]].any() for node in pairs)
    clips = [node for node in graph.node if node.op_type == "Clip"]
    assert [stored[node.input[1]].dtype for node in clips] == [np.float32]
    assert stored["stem.weight"].dtype == np.int8 and stored["body.bias"].dtype == np.float32
    quantizer = model.get_submodule("activation_points.stem.input")
    ends = (quantizer.codes.least - int(quantizer.zero_point), quantizer.codes.largest - int(quantizer.zero_point))
    assert stored["stem.input.scale"] == pytest.approx(float(quantizer.scale) * max(map(abs, ends)) / 127)
    assert (run(path, x).argmax(1) == logits(model, x).argmax(1)).mean() >= 0.8


def test_a_full_precision_file(tmp_path):
    model = lively(SmallNetwork(), 16)
    write_float_onnx(tmp_path / "m.onnx", model, spec_of())
    np.testing.assert_allclose(run(tmp_path / "m.onnx", images(8)), logits(model, images(8)), rtol=1e-4, atol=1e-5)
    assert not onnx.load(tmp_path / "m.onnx").metadata_props


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 16 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1)) if x.sum() > 0 else self.fc(-x.flatten(1))


class TestRefused:
    def test_a_model_that_torch_cannot_export(self, tmp_path):
        with pytest.raises(
            UserError, match=r"^model.name: got 'small', which torch cannot export to ONNX \(.*; allowed"
        ) as e:
            written(tmp_path / "m.onnx", quantized(Branching()))
        assert "\n" not in str(e.value) and not list(tmp_path.iterdir())

    def test_a_model_without_quantizers(self, tmp_path):
        with pytest.raises(UserError, match="model: got a model without quantizers"):
            written(tmp_path / "m.onnx", SmallNetwork())

    def test_activations_without_a_range(self, tmp_path):
        model = quantized(activations=STATIC)
        model.get_submodule("activation_points.soft.input").ready = False
        with pytest.raises(UserError, match="soft.input: got no range of activations yet; allowed: a calibrated model"):
            written(tmp_path / "m.onnx", model)
