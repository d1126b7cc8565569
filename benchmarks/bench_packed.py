"""Bytes of packed files beside what is counted, seconds to write and load them, and speed of packing.

    python -m benchmarks.bench_packed [--models resnet50 ...] [--size 64] [--rounds 5] [--threads 1] [--clock wall|cpu]

Random weights, widths 2/4/8 drawn at .2/.4/.4. Ratios: of the file to what ``cost.size`` counts (wanted ≤ 1.02), and to
the file of the same model at 8 bits; of the seconds to load a packed file to those to load the file of the quantize
stage, alternating. Every loaded model is held against the simulation: logits must be equal. The second table compares a
stream of codes with a copy of as many bytes as there are codes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.bench_quantize import SHARES, WIDTHS, compare
from fairquant.allocate.bitmap import BitMap, unit_shape
from fairquant.cost.size import MEGABYTE, size_report
from fairquant.export.metadata import ModelMetadata
from fairquant.export.packed import load_packed, write_packed
from fairquant.export.packing.bitstream import pack, unpack
from fairquant.export.packing.width_map import decode, encode
from fairquant.models.build import build
from fairquant.models.describe import describe
from fairquant.models.layers import quantizable_layers
from fairquant.models.spec import ModelSpec
from fairquant.quantize.attach import quantize_model
from fairquant.quantize.folded import skeleton
from fairquant.quantize.state import load_quantized, save_quantized

MODELS = ("resnet18", "resnet50", "mobilenet_v2", "deit_tiny_patch16_224")
CODES = 20_000_000
WANTED = 1.02


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(layer.weight.shape) for name, layer in quantizable_layers(model).items()}


def bitmap(shapes: dict[str, tuple[int, ...]], granularity: str, widths: tuple[int, ...]) -> BitMap:
    random = np.random.default_rng(0)
    shares = SHARES if len(widths) > 1 else (1.0,)
    drawn = {
        name: random.choice(widths, size=unit_shape(granularity, shape), p=shares) for name, shape in shapes.items()
    }
    return BitMap(granularity, {name: np.asarray(units, np.uint8) for name, units in drawn.items()})


def write(folder: Path, spec: ModelSpec, bits: BitMap, clock: Callable[[], float]) -> float:
    """Write the simulation's file and the packed one; return the seconds of the latter."""
    model = build(spec, seed=0).eval()
    quantize_model(model, bits)
    save_quantized(folder / "simulation", model, spec)
    metadata = ModelMetadata.of(spec, groups=("a", "b"), provenance=64 * "0")
    start = clock()
    write_packed(folder / "packed", model, metadata)
    return clock() - start


def files(spec: ModelSpec, granularity: str, rounds: int, clock: Callable[[], float]) -> list[str]:
    """Return the cells of one row."""
    plain = build(spec, seed=0)
    shapes, rest = shapes_of(plain), describe(plain, spec)["parameters"]["rest"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, spec, bitmap(shapes, granularity, (8,)), clock)
        int8 = (folder / "packed").stat().st_size
        bits = bitmap(shapes, granularity, WIDTHS)
        written = write(folder, spec, bits, clock)
        size, counted = (folder / "packed").stat().st_size, size_report(bits, shapes, rest=rest)
        images = torch.randn(2, 3, spec.image_size, spec.image_size)
        with torch.no_grad():
            if not torch.equal(
                load_packed(folder / "packed")(images), load_quantized(folder / "simulation")[0](images)
            ):
                raise SystemExit(f"{spec.name} {granularity}: other logits than the simulation's")
        other, load, ratio = compare(
            lambda: void(load_quantized(folder / "simulation")),
            lambda: void(load_packed(folder / "packed")),
            rounds,
            clock,
        )
        built = statistics.median(seconds(lambda: skeleton(spec, folded=False), clock) for _ in range(rounds))
    return [
        spec.name, granularity, f"{size / MEGABYTE:.3f}", f"{counted.weights / MEGABYTE:.3f}",
        f"{size / counted.packed:.5f}", f"{size / int8:.3f}", f"{written:.2f}", f"{load:.2f}", f"{built:.2f}",
        f"{other:.2f}", f"{ratio:.2f}",
    ]  # fmt: skip


def void(_: object) -> None:
    """Forget a result."""


def seconds(function: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    function()
    return clock() - start


def best(function: Callable[[], object], rounds: int, clock: Callable[[], float]) -> float:
    return min(seconds(function, clock) for _ in range(rounds))


def streams(rounds: int, clock: Callable[[], float]) -> None:
    random = np.random.default_rng(0)
    copied = np.zeros(CODES, np.uint8)
    target = np.empty_like(copied)
    copy = CODES / best(lambda: np.copyto(target, copied), rounds, clock) / 1e9
    print(f"\ncopy: {copy:.1f} Gbytes/s\n\n| bits | pack Gcodes/s | unpack Gcodes/s |\n|--:|--:|--:|")
    for width in range(1, 17):
        codes = random.integers(0, 2**width, CODES, dtype=np.uint8 if width <= 8 else np.uint16)
        stream = pack(codes, width)
        rates = [CODES / best(function, rounds, clock) / 1e9 for function in
                 (lambda c=codes, w=width: pack(c, w), lambda s=stream, w=width: unpack(s, CODES, w))]  # fmt: skip
        print(f"| {width} | {rates[0]:.2f} | {rates[1]:.2f} |", flush=True)
    units = random.choice(np.array(WIDTHS, np.uint8), CODES, p=SHARES)
    coded = encode(units)
    times = [best(function, rounds, clock) for function in (lambda: encode(units), lambda: decode(coded, CODES))]
    print(f"\nwidth map of {CODES / 1e6:.0f} M units: {8 * len(coded) / CODES:.3f} bits a unit, "
          f"written in {times[0]:.2f} s, read in {times[1]:.2f} s")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--granularities", nargs="+", default=("per_channel", "per_param"))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    torch.set_num_threads(arguments.threads)
    print(
        f"| model ({arguments.clock}) | granularity | MB | Σ bits/8 MB | ÷ counted (≤ {WANTED}) | ÷ 8 bits", end=" | "
    )
    print("write s | load s | of it skeleton s | load simulation s | packed ÷ simulation |")
    print("|---|---|" + "--:|" * 9)
    for granularity in arguments.granularities:
        for name in arguments.models:
            spec = ModelSpec(name, ("a", "b"), arguments.size, (0.5,) * 3, (0.25,) * 3)
            print("| " + " | ".join(files(spec, granularity, arguments.rounds, clock)) + " |", flush=True)
    streams(arguments.rounds, clock)


if __name__ == "__main__":
    main()
