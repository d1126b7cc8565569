"""Compare our 8-bit quantization with torchvision's own: its quantizable resnet, run in real int8 on the CPU.

    python -m scripts.compare_int8                           # in a workspace that pretrain has run in
    python -m scripts.compare_int8 --workspace FOLDER --csv int8.csv

Three models on the same test images, both quantized ones calibrated on the same training images
(quantize.calibration): the full-precision model of models/pretrained.safetensors; torchvision's path of it, batch norm
fused, prepared, calibrated and converted with the backend's default observers; and ours, 8-bit weights and activations
by ptq_static. Ours is a simulation in floating point: what it will take on a device is for the exported file to say,
so it has no latency here. Sizes are those of the saved state dict for torch's models, and packed bytes for ours.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairquant.artifacts import write_text
from fairquant.config import Config, load_config
from fairquant.cost.summary import Row, to_csv
from fairquant.errors import UserError
from fairquant.terminal import failed, show

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fairquant.data.store import Store

MODELS = ("resnet18", "resnet50")
ENGINES = ("x86", "fbgemm", "qnnpack")
"""Backends of torch's int8 kernels, the preferred one first."""
KNOWN = ("torch.ao.quantization is deprecated", "Please use quant_min and quant_max", r"torch\.quantize_per_tensor")
"""How the warnings begin that this path of torch's gives whoever takes it."""
MEGABYTE = 1e6


@dataclass(frozen=True)
class Candidate:
    """A finished classifier: its ``name``, its size in ``megabytes``, and whether its latency says something."""

    name: str
    model: nn.Module
    megabytes: float
    timed: bool = True


def choose_engine(name: str | None, supported: Sequence[str]) -> str:
    """Return the backend to use: ``name``, or the first of ``ENGINES`` among those ``supported``.

    Raises ``UserError`` where this torch has none of them, or not the one that is asked for.

    >>> choose_engine(None, ["none", "qnnpack", "fbgemm"])
    'fbgemm'
    """
    found = [engine for engine in ENGINES if engine in supported]
    if not found:
        raise UserError(f"torch: got no int8 backend ({', '.join(supported)}); allowed: one with {' | '.join(ENGINES)}")
    if name is not None and name not in found:
        raise UserError(f"--engine: got {name!r}; allowed: {' | '.join(found)}")
    return name or found[0]


@contextmanager
def int8_backend(engine: str) -> Iterator[Any]:
    """Yield ``torch.ao.quantization`` with ``engine`` switched on and the warnings left out that it always gives.

    Raises ``UserError`` for a torch without it.
    """
    import torch

    with warnings.catch_warnings():
        for message in KNOWN:
            warnings.filterwarnings("ignore", message=message)
        try:
            from torch.ao import quantization
        except ImportError:
            text = f"torch: got {torch.__version__} without torch.ao.quantization; allowed: a version that has it"
            raise UserError(text) from None
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = engine
        try:
            yield quantization
        finally:
            torch.backends.quantized.engine = before


def to_int8(model: nn.Module, name: str, images: Iterator[Tensor], *, engine: str, quantization: Any) -> nn.Module:
    """Return torchvision's int8 model with the weights of the full-precision ``model``, calibrated on ``images``."""
    import torch
    from torchvision.models import quantization as quantizable

    classes = model.get_submodule("fc").get_parameter("weight").shape[0]
    twin: nn.Module = getattr(quantizable, name)(weights=None, quantize=False, num_classes=classes)
    twin.load_state_dict(model.state_dict())
    twin.eval().fuse_model(is_qat=False)  # type: ignore[operator]
    twin.qconfig = quantization.get_default_qconfig(engine)
    prepared: nn.Module = quantization.prepare(twin)
    with torch.no_grad():
        for batch in images:
            prepared(batch)
    converted: nn.Module = quantization.convert(prepared)
    return converted


def calibration_images(config: Config, store: Store) -> Iterator[Tensor]:
    """Yield the batches that ``quantize.calibration`` asks for, as the pipeline draws them."""
    import torch

    from fairquant.data.batches import iterate
    from fairquant.train.calibration_images import calibration_rows

    section = config.quantize.calibration
    if section.sampling == "worst_group":
        raise UserError(
            "quantize.calibration.sampling: got 'worst_group'; allowed: random | balanced, for a comparison"
        )
    rows = calibration_rows(store, section, seed=config.seed)
    for batch in iterate(store, rows, batch_size=section.batch_size, device=torch.device("cpu")):
        yield batch.images


def ours(config: Config, store: Store, folder: Path) -> Candidate:
    """Return our 8-bit post-training quantization of the workspace's model, with a width for each output channel."""
    import numpy as np

    from fairquant import plugins
    from fairquant.allocate.bitmap import BitMap
    from fairquant.allocate.info import ModelInfo
    from fairquant.cost.size import size_report
    from fairquant.models.io import load_description, load_model
    from fairquant.modes import QuantizeJob
    from fairquant.quantize.attach import bitmap_of

    model, _ = load_model(folder / "pretrained.safetensors")
    info = ModelInfo.from_json(load_description(folder / "pretrained.json"))
    widths = {name: np.full(shape[0], 8, dtype=np.uint8) for name, shape in info.shapes.items()}
    activations = config.quantize.activations.model_copy(update={"bits": 8})
    section = config.quantize.model_copy(update={"activations": activations})
    job = QuantizeJob.of(
        config.model_copy(update={"quantize": section, "device": "cpu", "precision": "fp32"}),
        model=model,
        store=store,
        bits=BitMap("per_channel", widths),
        roles=info.roles,
    )
    finished = plugins.load("mode", "ptq_static").quantize(job).model
    packed = size_report(bitmap_of(finished), info.shapes, rest=info.rest).packed
    return Candidate("ours, w8a8 ptq_static", finished, packed / MEGABYTE, timed=False)


def file_megabytes(model: nn.Module) -> float:
    """Return the size of the saved state dict of ``model``."""
    import torch

    memory = io.BytesIO()
    torch.save(model.state_dict(), memory)
    return memory.tell() / MEGABYTE


def latencies(models: Sequence[nn.Module], images: Tensor, repeats: int) -> list[float]:
    """Return the median seconds of a forward pass of each model, taken in turns so that a busy machine slows all."""
    import torch

    taken: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for number in range(repeats + 1):
            for model, times in zip(models, taken, strict=True):
                start = time.perf_counter()
                model(images)
                if number:  # the first round warms up
                    times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in taken]


def rows_of(candidates: Sequence[Candidate], store: Store, *, batch: int, repeats: int) -> list[Row]:
    """Return accuracy overall, of the worst and of every group, size and latency: one row per model."""
    import torch

    from fairquant.data.batches import iterate
    from fairquant.evaluate.groups import GroupTable
    from fairquant.train.predict import predict

    timed = [candidate for candidate in candidates if candidate.timed]
    cpu = torch.device("cpu")
    images = next(iter(iterate(store, store.indices("test")[:batch], batch_size=batch, device=cpu))).images
    seconds = dict(
        zip(
            (candidate.name for candidate in timed),
            latencies([candidate.model for candidate in timed], images, repeats),
            strict=True,
        )
    )
    rows: list[Row] = []
    for candidate in candidates:
        part = predict(candidate.model, store, "test", batch_size=64, device=cpu)
        table = GroupTable.count(
            part.labels, part.logits.argmax(axis=1), part.groups, classes=store.classes, groups=store.group_names
        )
        found = {name: float(value) for name, value in zip(table.groups, table.accuracy, strict=True) if value == value}
        worst = min(found, key=lambda name: found[name])
        taken = seconds.get(candidate.name)
        rows.append(
            {
                "model": candidate.name,
                "overall": float((part.logits.argmax(axis=1) == part.labels).mean()),
                "worst": found[worst],
                "worst_group": worst,
                "gap": max(found.values()) - found[worst],
                "size_mb": candidate.megabytes,
                "latency_ms": "" if taken is None else 1000 * taken / len(images),
                "speed_up": "" if taken is None else seconds[candidates[0].name] / taken,
                **{f"accuracy:{name}": found.get(name, "") for name in table.groups},
            }
        )
    return rows


def compare(workspace: Path, *, engine: str | None, batch: int, repeats: int) -> list[Row]:
    """Build, calibrate and measure the three models of ``workspace``.

    Raises ``UserError``: no int8 backend, another architecture, or a workspace without what pretrain writes.
    """
    config = load_config(workspace / "params.yaml", meta=None)
    import torch

    from fairquant.data.store import Store
    from fairquant.models.io import load_model

    chosen = choose_engine(engine, torch.backends.quantized.supported_engines)
    store = Store.open(workspace / "data/prepared")
    model, spec = load_model(workspace / "models/pretrained.safetensors")
    if spec.name not in MODELS:
        raise UserError(
            f"model.name: got {spec.name!r}; allowed: {' | '.join(MODELS)} (torchvision's quantizable ones)"
        )
    with int8_backend(chosen) as quantization:
        images = calibration_images(config, store)
        theirs = to_int8(model, spec.name, images, engine=chosen, quantization=quantization)
        candidates = [
            Candidate("full precision", model, file_megabytes(model)),
            Candidate(f"torchvision int8, {chosen}", theirs, file_megabytes(theirs)),
            ours(config, store, workspace / "models"),
        ]
        return rows_of(candidates, store, batch=batch, repeats=repeats)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison as csv and write it where asked; a mistake is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m scripts.compare_int8", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workspace", type=Path, default=Path(), help="folder with params.yaml, data and models")
    parser.add_argument("--engine", choices=ENGINES, help="backend of the int8 kernels, default the first there is")
    parser.add_argument("--batch", type=int, default=16, help="images per timed pass, default 16")
    parser.add_argument("--repeats", type=int, default=20, help="timed passes of each model, default 20")
    parser.add_argument("--csv", type=Path, help="write the table to this file, too")
    options = parser.parse_args(arguments)
    try:
        for name in ("batch", "repeats"):
            if getattr(options, name) < 1:
                raise UserError(f"--{name}: got {getattr(options, name)}; allowed: 1 or more")
        text = to_csv(compare(options.workspace, engine=options.engine, batch=options.batch, repeats=options.repeats))
        show(text.removesuffix("\n"))
        if options.csv is not None:
            write_text(options.csv, text)
    except Exception as error:
        return failed(error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
