"""A model file that answers for image files: class and probabilities of each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fairquant.data.raw import Pixels
from fairquant.errors import ArtifactError, DataError, UserError
from fairquant.export.metadata import ModelMetadata
from fairquant.export.onnx_metadata import read_onnx_metadata
from fairquant.export.runtimes import Runtime, open_session
from fairquant.predict.images import Unreadable, normalise, read_images
from fairquant.predict.packed import open_packed

BATCH_SIZE = 16
PACKED_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        image: the file.
        label: the class with the largest logit, the first of equal ones.
        probability: of ``label``, in [0, 1]: the softmax of the logits. It is as calibrated as the model is.
        probabilities: of every class, in the model's order; they sum to 1.

    >>> made = Prediction(Path("a.jpg"), "benign", 0.75, {"malignant": 0.25, "benign": 0.75})
    >>> made.top(2)
    [('benign', 0.75), ('malignant', 0.25)]
    """

    image: Path
    label: str
    probability: float
    probabilities: Mapping[str, float]

    def top(self, count: int) -> list[tuple[str, float]]:
        """Return the ``count`` most probable classes with their probabilities, most probable first."""
        return sorted(self.probabilities.items(), key=lambda item: -item[1])[:count]


@dataclass(frozen=True, eq=False)
class Predictor:
    """A model ready to predict; ``Predictor.open`` makes one from a file.

    Attributes:
        metadata: what the file says of itself: classes, groups, image size, provenance.
        runtime: what computes logits from normalised images.
        source: name of the file, for errors.
        batch_size: images that are computed together, at least 1.
        threads: that decode images, at least 1.
    """

    metadata: ModelMetadata
    runtime: Runtime
    source: str = "model"
    batch_size: int = BATCH_SIZE
    threads: int = 1

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        runtime: str = "onnxruntime",
        threads: int | None = None,
        batch_size: int | None = None,
    ) -> Predictor:
        """Open model.onnx, or packed.safetensors (which takes torch).

        Args:
            path: of a file that the export stage wrote.
            runtime: onnxruntime | openvino; a packed file does not use it.
            threads: that decode and that compute, at least 1; None: one for each available core.
            batch_size: images that are computed together, at least 1; None: 16, or 1 where the ranges of activations
                are those of the batch (dynamic), so that no answer depends on the other images.

        Raises:
            UserError: a value out of range, or something that is not installed.
            ArtifactError: the file is missing, damaged, or not of this project.
        """
        model: Runtime
        count = _cores() if threads is None else threads
        for key, value in (("threads", count), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise UserError(f"{key}: got {value}; allowed: at least 1")
        if Path(path).suffix.lower() == PACKED_SUFFIX:
            metadata, model = open_packed(path, threads=count)
        else:
            metadata = read_onnx_metadata(path)  # first: it tells in no time that a file is not ours
            model = open_session(path, runtime, threads=count)
        return cls(metadata, model, str(path), batch_size or _usual_batch(metadata), count)

    def predict(self, images: Iterable[str | Path]) -> list[Prediction]:
        """Return what the model says of image files, in their order.

        Raises ``DataError`` where one cannot be read; ``each`` goes on.
        """
        answers = []
        for answer in self.each(images):
            if isinstance(answer, Unreadable):
                raise DataError(str(answer))
            answers.append(answer)
        return answers

    def each(self, images: Iterable[str | Path]) -> Iterator[Prediction | Unreadable]:
        """Yield what the model says of each image file, in order, or why the file cannot be read."""
        reading = read_images(map(Path, images), self.metadata.spec.image_size, threads=self.threads)
        while batch := list(islice(reading, self.batch_size)):
            pixels = [(path, found) for path, found in batch if not isinstance(found, Unreadable)]
            answers = iter(self._answers(*zip(*pixels, strict=True)) if pixels else ())
            for _, found in batch:
                yield found if isinstance(found, Unreadable) else next(answers)

    def logits(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Return logits (N, C) of decoded images, uint8 (N, H, W, 3), normalised here.

        Raises ``ArtifactError`` where they are not one finite number per class: the file is damaged.
        """
        spec = self.metadata.spec
        logits = self.runtime.run(normalise(pixels, spec.mean, spec.std))
        if logits.shape != (len(pixels), spec.n_classes):
            raise ArtifactError(
                f"{self.source}: got logits {logits.shape} for {len(pixels)} images; allowed: one for each of the "
                f"{spec.n_classes} classes"
            )
        if not np.isfinite(logits).all():
            raise ArtifactError(f"{self.source}: got logits that are NaN or infinite; allowed: finite numbers")
        return logits

    def _answers(self, paths: tuple[Path, ...], pixels: tuple[Pixels, ...]) -> Iterator[Prediction]:
        logits, classes = self.logits(np.stack(pixels)), self.metadata.spec.classes
        for path, best, row in zip(paths, logits.argmax(axis=1).tolist(), softmax(logits).tolist(), strict=True):
            yield Prediction(path, classes[best], row[best], dict(zip(classes, row, strict=True)))


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return probabilities of logits (N, C), in float64; the largest logit of a row is taken off first.

    >>> softmax(np.array([[0, 0], [1000, 1000 + np.log(3)], [-3e38, 3e38]], np.float32)).round(4).tolist()
    [[0.5, 0.5], [0.25, 0.75], [0.0, 1.0]]
    """
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    shares: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _usual_batch(metadata: ModelMetadata) -> int:
    facts = metadata.quantization
    return 1 if facts is not None and facts.activations == "dynamic" else BATCH_SIZE


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
