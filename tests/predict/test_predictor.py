"""A model file that answers for images: against logits computed by hand, in both runtimes, and from a packed file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax as softmax_of_scipy

import fairquant
from fairquant.errors import ArtifactError, DataError, UserError
from fairquant.export.metadata import ModelMetadata, Quantization
from fairquant.predict import Prediction, Predictor, Unreadable
from fairquant.predict.images import read_images
from fairquant.predict.predictor import BATCH_SIZE, softmax
from tests.predict.conftest import CLASSES, WEIGHT, expected_logits, metadata, write_model

NAMES = [f"{number} ü.png" for number in range(7)]


def pixels_of(paths: list[Path], size: int = 8) -> np.ndarray:
    return np.stack([pixels for _, pixels in read_images(paths, size, threads=1)])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_answers_are_those_computed_by_hand(model, images, runtime):
    paths = images(*NAMES, size=20)
    answers = Predictor.open(model, runtime=runtime, threads=1).predict(paths)
    shares = softmax_of_scipy(expected_logits(pixels_of(paths)), axis=1)
    assert [answer.image for answer in answers] == paths
    assert len({answer.label for answer in answers}) == 3, "the images should fall into all classes"
    for answer, row in zip(answers, shares, strict=True):
        assert list(answer.probabilities) == list(CLASSES)
        assert answer.label == CLASSES[row.argmax()]
        assert answer.probability == answer.probabilities[answer.label] == max(answer.probabilities.values())
        assert np.allclose(list(answer.probabilities.values()), row, rtol=0, atol=1e-5)
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 50])
def test_batches_and_threads_change_nothing(model, images, batch_size):
    paths = images(*NAMES)
    reference = Predictor.open(model, threads=1).predict(paths)
    assert Predictor.open(model, threads=3, batch_size=batch_size).predict(map(str, paths)) == reference


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_unreadable_images_keep_their_place(model, images, batch_size):
    paths = images(*NAMES)
    for index in (0, 3, 4):
        paths[index].write_text("no image")
    predictor = Predictor.open(model, threads=2, batch_size=batch_size)
    answers = list(predictor.each(paths))
    assert [answer.image for answer in answers] == paths
    assert [isinstance(answer, Unreadable) for answer in answers] == [index in (0, 3, 4) for index in range(7)]
    good = [path for index, path in enumerate(paths) if index not in (0, 3, 4)]
    assert [answer for answer in answers if isinstance(answer, Prediction)] == predictor.predict(good)
    with pytest.raises(DataError) as error:
        predictor.predict(paths)
    assert str(error.value) == f"{paths[0]}: not a readable image (cannot identify image file)"


def test_no_images_no_answers(model):
    assert Predictor.open(model, threads=1).predict([]) == []


def test_the_file_says_what_it_is(model):
    predictor = Predictor.open(model, threads=1)
    assert predictor.metadata == metadata()
    assert (predictor.batch_size, predictor.source) == (BATCH_SIZE, str(model))


@pytest.mark.parametrize(("activations", "bits", "batch"), [("dynamic", 8, 1), ("static", 8, 16), ("fp32", 32, 16)])
def test_dynamic_ranges_are_those_of_one_image(tmp_path, activations, bits, batch):
    facts = Quantization(8, (8,), "symmetric", "per_tensor", activations, bits)
    path = write_model(tmp_path / "m.onnx", metadata(quantization=facts))
    assert Predictor.open(path, threads=1).batch_size == batch
    assert Predictor.open(path, threads=1, batch_size=5).batch_size == 5


def test_equal_logits_are_the_first_class(tmp_path, images):
    path = write_model(tmp_path / "m.onnx", weight=np.zeros((3, 3), np.float32))
    [answer] = Predictor.open(path, threads=1).predict(images("a.png"))
    assert (answer.label, answer.probability) == ("red", pytest.approx(1 / 3))
    assert answer.top(2) == [("red", pytest.approx(1 / 3)), ("green, or so", pytest.approx(1 / 3))]


def test_softmax():
    random = np.random.default_rng(0)
    logits = (random.standard_normal((200, 7)) * 10.0 ** random.uniform(-3, 3, (200, 1))).astype(np.float32)
    assert np.allclose(softmax(logits), softmax_of_scipy(logits.astype(np.float64), axis=1), rtol=1e-12, atol=0)
    assert softmax(logits).dtype == np.float64
    extreme = np.array([[3.4e38, -3.4e38, 3.4e38]], np.float32)
    assert softmax(extreme).tolist() == [[0.5, 0.0, 0.5]]


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"threads": 0}, "threads: got 0; allowed: at least 1"),
            ({"batch_size": 0}, "batch_size: got 0; allowed: at least 1"),
            ({"runtime": "tflite"}, r"got 'tflite'; allowed: onnxruntime \| openvino"),
        ],
    )
    def test_settings(self, model, options, text):
        with pytest.raises(UserError, match=text):
            Predictor.open(model, **options)

    def test_files_that_are_no_model_of_ours(self, tmp_path):
        with pytest.raises(ArtifactError, match=r"absent\.onnx: not found"):
            Predictor.open(tmp_path / "absent.onnx")
        (tmp_path / "text.onnx").write_text("hello")
        with pytest.raises(ArtifactError, match=r"text\.onnx: not a whole ONNX file"):
            Predictor.open(tmp_path / "text.onnx")
        foreign = write_model(tmp_path / "foreign.onnx", entries={})
        with pytest.raises(ArtifactError, match="got an ONNX file without fairquant metadata; allowed: one the export"):
            Predictor.open(foreign)

    def test_logits_for_other_classes(self, tmp_path, images):
        path = write_model(tmp_path / "m.onnx", metadata(("a", "b")))
        with pytest.raises(ArtifactError) as error:
            Predictor.open(path, threads=1).predict(images("a.png", "b.png"))
        assert str(error.value) == (f"{path}: got logits (2, 3) for 2 images; allowed: one for each of the 2 classes")

    def test_a_model_that_puts_out_nan(self, tmp_path, images):
        path = write_model(tmp_path / "m.onnx", weight=WEIGHT * np.float32(np.nan))
        with pytest.raises(ArtifactError) as error:
            Predictor.open(path, threads=1).predict(images("a.png"))
        assert str(error.value) == f"{path}: got logits that are NaN or infinite; allowed: finite numbers"

    def test_an_image_size_that_is_not_the_graphs(self, tmp_path, images):
        path = write_model(tmp_path / "m.onnx", metadata(size=12), size=8)
        with pytest.raises(UserError, match=r"images: got float32 \(1, 3, 12, 12\); allowed: float32 \(N, 3, 8, 8\)"):
            Predictor.open(path, threads=1).predict(images("a.png"))


class TestPacked:
    """The same from a packed file, where torch computes."""

    @pytest.fixture
    def packed(self, tmp_path):

        from fairquant.allocate.bitmap import BitMap
        from fairquant.export.packed import write_packed
        from fairquant.models.build import build
        from fairquant.models.layers import quantizable_layers
        from fairquant.models.spec import ModelSpec
        from fairquant.quantize.attach import bitmap_of, quantize_model

        spec = ModelSpec("resnet20", CLASSES, 16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
        model = build(spec, seed=0).eval()
        shapes = {name: tuple(layer.weight.shape) for name, layer in quantizable_layers(model).items()}
        quantize_model(model, BitMap.filled(shapes, 4))
        facts = Quantization.of(bitmap_of(model), shapes)
        meta = ModelMetadata.of(spec, groups=("a",), provenance="b" * 64, quantization=facts)
        write_packed(tmp_path / "packed.safetensors", model, meta)
        return tmp_path / "packed.safetensors", model, meta

    def test_it_predicts_what_the_simulation_does(self, packed, images):
        import torch

        path, model, meta = packed
        paths = images(*NAMES, size=30)
        threads = torch.get_num_threads()
        predictor = Predictor.open(path, threads=1)
        torch.set_num_threads(threads)
        assert predictor.metadata == meta
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (meta.spec.mean, meta.spec.std))
        x = (torch.from_numpy(pixels_of(paths, 16)).permute(0, 3, 1, 2).float() / 255 - mean) / std
        with torch.inference_mode():
            shares = model(x).double().softmax(dim=1).numpy()
        for answer, row in zip(predictor.predict(paths), shares, strict=True):
            assert np.allclose(list(answer.probabilities.values()), row, rtol=0, atol=1e-5)

    def test_other_safetensors_files_are_refused(self, tmp_path):
        (tmp_path / "x.safetensors").write_bytes(b"hello")
        with pytest.raises(ArtifactError, match=r"x\.safetensors: "):
            Predictor.open(tmp_path / "x.safetensors", threads=1)


def test_the_version_is_the_projects(model):
    assert Predictor.open(model, threads=1).metadata.project == fairquant.__version__
