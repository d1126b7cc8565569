"""Speed of exported files beside torch eager and the exported full-precision model, all by turns in one run.

    python benchmarks/bench_runtime.py [--models resnet18 deit_tiny_patch16_224] [--runs 30] [--clock wall|cpu]

For each model and number of images a markdown table: median and 95th percentile of a call, and the median of the
rounds' ratios to torch eager fp32 and to onnxruntime fp32 (2 means twice as fast). ``W8A8`` is plain int8 storage;
``mixed`` has channels of 2, 4 and 8 bits (25 / 50 / 25 %); activations are at 8 bits in both. Weights are random, with
batch norm's statistics measured on images; a file must be nearer to its simulation than that is to full precision, or
nothing is timed. On a machine that is busy with other work, ``--threads 1 --clock cpu`` (processor seconds of this
process) is the clock to trust.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from benchmarks.bench_quantize import WIDTHS
from benchmarks.table import CLOCKS, Pairs, Row, add_clock, exact
from fairquant import plugins
from fairquant.allocate.bitmap import BitMap
from fairquant.config.schema import ProtectSection, QuantizeSection
from fairquant.data.store import Store
from fairquant.export.latency import WARM_UP, Forward, by_turns, eager, torch_threads
from fairquant.export.metadata import ModelMetadata
from fairquant.export.onnx_file import write_float_onnx, write_onnx
from fairquant.export.parity import normalise
from fairquant.export.runtimes import RUNTIMES, open_session
from fairquant.models.build import build
from fairquant.models.layers import quantizable_layers
from fairquant.models.spec import ModelSpec
from fairquant.modes import QuantizeJob
from fairquant.quantize.state import load_quantized, save_quantized

SHARES = (0.25, 0.5, 0.25)
IMAGES, CLASSES = 32, 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")
FILES: dict[str, tuple[int, ...]] = {"fp32": (), "W8A8": (8,), "mixed 2/4/8, A8": WIDTHS}
TORCH, REFERENCE = "torch eager fp32", "onnxruntime fp32"


def patchy_images(size: int) -> Store:
    """Return images of patches of colour and some noise, all of one split, class and group."""
    random = np.random.default_rng(0)
    patches = random.integers(0, 256, (IMAGES, 8, 8, 3)).repeat(-(-size // 8), 1).repeat(-(-size // 8), 2)
    noisy = patches[:, :size, :size] + random.normal(0, 16, (IMAGES, size, size, 3))
    images, none = noisy.clip(0, 255).astype(np.uint8), np.zeros(IMAGES, np.int64)
    ids = tuple(map(str, range(IMAGES)))
    meta = {"mean": MEAN, "std": STD}
    return Store(images, none, none, np.full(IMAGES, "train"), ("a", "b"), ("all",), meta, {"id": ids})


@torch.no_grad()
def trained_alike(model: nn.Module, images: np.ndarray) -> None:
    """Give batch norm the statistics of ``images``, and residual branches that begin at zero a say."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        if norm.weight.count_nonzero() == 0:
            norm.weight.fill_(1)
        norm.reset_running_stats()
        norm.momentum = None
    model.train()(torch.from_numpy(images))
    model.eval()


def widths(model: nn.Module, chosen: tuple[int, ...]) -> BitMap:
    """Return the widths of each layer's channels: all alike, or ``SHARES`` of each of three, in random order."""
    random = np.random.default_rng(0)
    layers = {}
    for name, layer in quantizable_layers(model).items():
        channels = layer.weight.shape[0]
        ends = np.rint(np.cumsum(SHARES if len(chosen) > 1 else (1.0,)) * channels).astype(int)
        layers[name] = random.permutation(np.repeat(chosen, np.diff(ends, prepend=0))).astype(np.uint8)
    return BitMap("per_channel", layers)


def quantized(model: nn.Module, spec: ModelSpec, bits: BitMap, store: Store, folder: Path) -> nn.Module:
    """Return ``model`` as the quantize stage with ``quant_mode: ptq_static`` leaves it on disk."""
    section = QuantizeSection(batch_norm="fold", calibration={"batches": 2, "batch_size": IMAGES // 2})
    job = QuantizeJob(model, store, bits, section, 0, CPU, "fp32", ProtectSection(), {})
    save_quantized(folder / "q.safetensors", plugins.load("mode", "ptq_static").quantize(job).model, spec)
    return load_quantized(folder / "q.safetensors")[0]


def logits_of(model: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = model.eval()(torch.from_numpy(images)).numpy()
    return logits


def require_near(found: np.ndarray, expected: np.ndarray, distance: float, name: str) -> None:
    """Refuse to time a file whose logits are further than ``distance`` from those ``expected``."""
    if not np.linalg.norm(found - expected) <= distance:
        off = np.linalg.norm(found - expected)
        raise AssertionError(f"{name}: logits are {off:.3g} from the simulation's; allowed: {distance:.3g}")


def prepare(spec: ModelSpec, folder: Path, threads: int) -> tuple[dict[str, Forward], dict[str, float]]:
    """Return what is timed, and the size of each file in 10^6 bytes, by the name of a row."""
    store = patchy_images(spec.image_size)
    images = normalise(store.images, mean=MEAN, std=STD)
    metadata = ModelMetadata.of(spec, groups=store.group_names, provenance=64 * "0")
    models: dict[str, Forward] = {}
    sizes: dict[str, float] = {}
    full, few = np.empty(0, np.float32), images[:4]
    for name, chosen in FILES.items():
        model, path = build(spec, seed=0), folder / f"{len(sizes)}.onnx"
        trained_alike(model, images)
        if not chosen:
            write_float_onnx(path, model, spec)
            models |= {TORCH: eager(model, channels_last=False), "torch eager fp32, channels last": eager(model)}
            expected = full = logits_of(model, few)
        else:
            model = quantized(model, spec, widths(model, chosen), store, folder)
            write_onnx(path, model, metadata)
            expected = logits_of(model, few)
        near = float(np.linalg.norm(expected - full) if chosen else 1e-3 * np.linalg.norm(full))
        for runtime in RUNTIMES:
            row = f"{runtime} {name}"
            models[row] = open_session(path, runtime, threads=threads).run
            require_near(models[row](few), expected, near, row)
            sizes[row] = path.stat().st_size / 1e6
    return models, sizes


def table(
    models: Mapping[str, Forward],
    sizes: Mapping[str, float],
    images: np.ndarray,
    runs: int,
    clock: Callable[[], float],
) -> None:
    """Time ``models`` and print their rows."""
    with tqdm(total=len(models) * (WARM_UP + runs), desc="runs", disable=None, leave=False) as bar:
        rows = by_turns(models, images, runs=runs, clock=clock, after=bar.update)
    seconds = {name: np.array(row) for name, row in rows.items()}
    print(
        f"\n| {len(images)} images | MB | median ms | p95 ms | × {TORCH} | × {REFERENCE} |\n|---|--:|--:|--:|--:|--:|"
    )
    for name, times in seconds.items():
        ratios = [f"{np.median(seconds[other] / times):.2f}" for other in (TORCH, REFERENCE)]
        median, high = np.percentile(times, [50, 95]) * 1e3
        size = f"{sizes[name]:.2f}" if name in sizes else ""
        print(f"| {name} | {size} | {median:.2f} | {high:.2f} | {' | '.join(ratios)} |", flush=True)


def rows(quick: bool) -> Iterator[Row]:
    """Yield calls of the exported 2/4/8-bit file ÷ those of the full-precision file in the same runtime, one image."""
    for name in ("resnet18",) if quick else ("resnet18", "deit_tiny_patch16_224"):
        spec = ModelSpec(name, tuple(map(str, range(CLASSES))), 224, MEAN, STD)
        with tempfile.TemporaryDirectory(prefix="fairquant-") as folder, torch_threads(1):
            models, sizes = prepare(spec, Path(folder), 1)
            images = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
            times = by_turns(models, images, runs=30, clock=CLOCKS["cpu"])
            fp32, _, mixed = FILES
            for runtime in RUNTIMES:
                pairs = Pairs(tuple(times[f"{runtime} {fp32}"]), tuple(times[f"{runtime} {mixed}"]))
                what = f"{name} 224 px, one image, {mixed} ÷ fp32, both in {runtime}"
                yield pairs.row(f"runtime/{name}-{runtime}", what)
            size, full = (sizes[f"onnxruntime {key}"] * 1e6 for key in (mixed, fp32))
            what = f"{name}: bytes of the {mixed} ONNX file ÷ the fp32 file's"
            yield exact(f"runtime/{name}-bytes", what, size, full, wanted=None, unit="bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "deit_tiny_patch16_224"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    add_clock(parser)
    arguments = parser.parse_args()
    clock = CLOCKS[arguments.clock]
    random = np.random.default_rng(0)
    for name in arguments.models:
        spec = ModelSpec(name, tuple(map(str, range(CLASSES))), arguments.size, MEAN, STD)
        with tempfile.TemporaryDirectory(prefix="fairquant-") as folder, torch_threads(arguments.threads):
            models, sizes = prepare(spec, Path(folder), arguments.threads)
            print(f"\n{name}, {arguments.size} px, threads: {arguments.threads}, {arguments.clock} time")
            for batch in arguments.batches:
                images = random.standard_normal((batch, 3, arguments.size, arguments.size), np.float32)
                table(models, sizes, images, arguments.runs, clock)


if __name__ == "__main__":
    main()
