"""An ONNX file run on the CPU by onnxruntime or OpenVINO, with the settings that keep to what the file says.

Left alone, both compute something else than the file states:

- OpenVINO computes in bf16 where the CPU has units for it; ``INFERENCE_PRECISION_HINT: f32`` forbids it.
- Both round the *floating* inputs of a matrix product to 8 bits where its weights are integers. On a 256 × 128 product
  with outputs up to 41 that moved them by 0.2; by 2e-5 with ``DYNAMIC_QUANTIZATION_GROUP_SIZE: 0`` in OpenVINO and with
  ``session.qdq_matmulnbits_accuracy_level: 1`` in onnxruntime.
- On x86 CPUs without VNNI instructions onnxruntime sums products of 8 bits in 16 and saturates. There
  ``session.x64quantprecision`` makes it use slower, exact sums; with VNNI the fast ones are exact. OpenVINO has no such
  setting: on those CPUs ``parity`` tells what is lost.

Neither torch nor onnx is needed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fairquant.errors import ArtifactError, UserError
from fairquant.export.metadata import ModelMetadata
from fairquant.export.onnx_metadata import read_onnx_metadata
from fairquant.export.quiet import import_onnxruntime, import_openvino

if TYPE_CHECKING:
    import onnxruntime

Floats = npt.NDArray[np.float32]

CPUINFO = Path("/proc/cpuinfo")
"""Where Linux lists what the CPU can do."""

LONGEST = 160
"""Characters of a runtime's error that are passed on."""

FATAL = 4
"""onnxruntime's level of messages: errors are raised, and would otherwise be told twice."""


class Runtime(Protocol):
    """Whatever runs an exported model."""

    def run(self, images: Floats) -> Floats:
        """Return logits (B, C) of normalised ``images`` (B, 3, H, W), float32 both."""
        ...


class Tensor(NamedTuple):
    """An input or output as a file declares it; None stands for any size, or for a rank that is not known."""

    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        """Return dtype and shape as errors show them."""
        sizes = "?" if self.shape is None else ", ".join("N" if size is None else str(size) for size in self.shape)
        return f"{self.dtype} ({sizes})"


@dataclass(frozen=True, eq=False)
class Opened:
    """What a runtime says of a file it has loaded."""

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    forward: Callable[[Floats], Floats]


@dataclass(frozen=True, eq=False)
class Session:
    """A file loaded by a runtime, ready to run.

    Attributes:
        path: of the file.
        runtime: its name.
        images: what ``run`` takes.
        forward: what runs it, unchecked.
    """

    path: Path
    runtime: str
    images: Tensor
    forward: Callable[[Floats], Floats]

    @property
    def metadata(self) -> ModelMetadata:
        """What the file says of itself; ``ArtifactError`` where this project did not write it."""
        return read_onnx_metadata(self.path)

    def run(self, images: Floats) -> Floats:
        """Return logits (B, C) of normalised ``images`` (B, 3, H, W), float32 both.

        Raises:
            UserError: ``images`` have another dtype or shape than the file takes.
            ArtifactError: the runtime cannot compute what the file asks for, or returns other than a row per image.
        """
        given = Tensor(str(images.dtype), images.shape)
        if given.dtype != self.images.dtype or not _same_shape(images.shape, self.images.shape or ()):
            raise UserError(f"images: got {given}; allowed: {self.images}")
        try:
            logits = self.forward(np.ascontiguousarray(images))
        except Exception as error:  # the runtimes' errors have no closer base in common
            raise _refused(self.path, self.runtime, error) from None
        if len(logits) != len(images):  # OpenVINO runs some files whose shapes contradict each other
            raise ArtifactError(
                f"{self.path}: got {len(logits)} rows of logits from {self.runtime} for {len(images)} images; allowed: "
                "one for each"
            )
        return logits


def open_session(path: str | Path, runtime: str, *, threads: int) -> Session:
    """Load an ONNX file.

    Args:
        path: of a file with one input of images and one output of logits, as ``onnx_file`` writes it.
        runtime: onnxruntime | openvino.
        threads: that compute one call, at least 1.

    Raises:
        UserError: the runtime is unknown or not installed.
        ArtifactError: the file is missing, damaged, or no image classifier that the runtime can run.
    """
    if runtime not in RUNTIMES:
        raise UserError(f"export.runtimes: got {runtime!r}; allowed: {' | '.join(RUNTIMES)}")
    if threads < 1:
        raise UserError(f"threads: got {threads}; allowed: at least 1")
    file = Path(path)
    if not file.is_file():
        raise ArtifactError(f"{file}: not found; run the stage that writes it (dvc repro)")
    try:
        opened = RUNTIMES[runtime](file, threads)
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == runtime
        reason = "not installed" if absent else f"broken ({_reason(error)})"
        raise UserError(
            f"export.runtimes: got {runtime!r}, which is {reason}; allowed: a runtime that is there (pip install "
            f"{runtime})"
        ) from None
    except Exception as error:  # the runtimes' errors have no closer base in common
        raise _refused(file, runtime, error) from None
    _require_classifier(file, opened)
    return Session(file, runtime, opened.inputs[0], opened.forward)


def onnxruntime_options(threads: int) -> onnxruntime.SessionOptions:
    """Return onnxruntime's settings for ``threads``.

    Threads do not keep spinning once a call is done: they would take the time of whatever runs next.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = FATAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads == 1 else "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.add_session_config_entry("session.x64quantprecision", "0" if has_vnni() else "1")
    return options


def openvino_settings(threads: int) -> dict[str, Any]:
    """Return OpenVINO's settings for ``threads``."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "ENABLE_CPU_PINNING": False,  # processes pinned alike would share one core
        "CACHE_DIR": "",
    }


def has_vnni() -> bool:
    """Return whether the CPU is known to have VNNI instructions (avx512_vnni, avx_vnni); only Linux tells."""
    return CPUINFO.is_file() and "_vnni" in CPUINFO.read_text(encoding="utf-8", errors="replace")


def _open_onnxruntime(path: Path, threads: int) -> Opened:
    onnxruntime = import_onnxruntime()
    session = onnxruntime.InferenceSession(str(path), onnxruntime_options(threads), providers=["CPUExecutionProvider"])
    inputs, outputs = session.get_inputs(), session.get_outputs()

    def forward(images: Floats) -> Floats:
        logits: Floats = session.run([outputs[0].name], {inputs[0].name: images})[0]
        return logits

    return Opened([_of_onnxruntime(arg) for arg in inputs], [_of_onnxruntime(arg) for arg in outputs], forward)


def _of_onnxruntime(argument: onnxruntime.NodeArg) -> Tensor:
    name = argument.type.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(name, name)
    return Tensor(dtype, tuple(size if isinstance(size, int) else None for size in argument.shape))


def _open_openvino(path: Path, threads: int) -> Opened:
    openvino = import_openvino()
    # Core.read_model would try every format it knows on a damaged file, and print what each thought of it.
    frontend = openvino.frontend.FrontEndManager().load_by_framework("onnx")
    model = frontend.convert(frontend.load(str(path)))
    inputs, outputs = ([_of_openvino(port) for port in ports] for ports in (model.inputs, model.outputs))
    request = openvino.Core().compile_model(model, "CPU", openvino_settings(threads)).create_infer_request()

    def forward(images: Floats) -> Floats:
        request.infer({0: images}, share_inputs=True)
        logits: Floats = request.get_output_tensor(0).data.copy()
        return logits

    return Opened(inputs, outputs, forward)


def _of_openvino(port: Any) -> Tensor:
    shape = port.get_partial_shape()
    sizes = tuple(size.get_length() if size.is_static else None for size in shape) if shape.rank.is_static else None
    return Tensor(str(np.dtype(port.get_element_type().to_dtype())), sizes)


RUNTIMES: Mapping[str, Callable[[Path, int], Opened]] = {
    "onnxruntime": _open_onnxruntime,
    "openvino": _open_openvino,
}
"""How each runtime loads a file."""


def _require_classifier(path: Path, opened: Opened) -> None:
    """Raise ``ArtifactError`` unless the file takes images and returns logits, any number of them."""
    ports = (*opened.inputs, *opened.outputs)
    fits = (len(opened.inputs), len(opened.outputs)) == (1, 1) and all(port.dtype == "float32" for port in ports)
    if fits:
        images, logits = (port.shape or () for port in ports)
        fits = len(images) == 4 and images[0] is None and images[1] in (3, None) and len(logits) == 2
    if not fits:
        shown = [", ".join(map(str, tensors)) or "none" for tensors in (opened.inputs, opened.outputs)]
        raise ArtifactError(
            f"{path}: got inputs {shown[0]} and outputs {shown[1]}; allowed: images float32 (N, 3, height, width) and "
            "logits float32 (N, classes), as the export stage writes them"
        )


def _same_shape(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(need in (None, size) for size, need in zip(shape, wanted, strict=True))


def _refused(path: Path, runtime: str, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{path}: got a file that {runtime} cannot run ({_reason(error)}); allowed: an ONNX file of the export stage"
    )


def _reason(error: Exception) -> str:
    """Return what an error of a runtime comes down to: the end of its last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = lines[-1].rpartition("failed:")[2].strip()
    return reason if len(reason) <= LONGEST else "…" + reason[-LONGEST:]
