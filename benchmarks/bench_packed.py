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
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from benchmarks.bench_quantize import SHARES, WIDTHS
from benchmarks.table import CLOCKS, Clock, Pairs, Row, add_clock, alternate, exact, seconds
from fairquant.allocate.bitmap import BitMap, unit_shape
from fairquant.cost.size import MEGABYTE, SizeReport, size_report
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
FEW = (("resnet18", "per_channel"), ("resnet50", "per_channel"), ("resnet18", "per_param"))
"""Models of the rows that are compared."""


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(layer.weight.shape) for name, layer in quantizable_layers(model).items()}


def bitmap(shapes: dict[str, tuple[int, ...]], granularity: str, widths: tuple[int, ...]) -> BitMap:
    random = np.random.default_rng(0)
    shares = SHARES if len(widths) > 1 else (1.0,)
    drawn = {
        name: random.choice(widths, size=unit_shape(granularity, shape), p=shares) for name, shape in shapes.items()
    }
    return BitMap(granularity, {name: np.asarray(units, np.uint8) for name, units in drawn.items()})


def write(folder: Path, spec: ModelSpec, bits: BitMap, clock: Clock) -> float:
    """Write the simulation's file and the packed one; return the seconds of the latter."""
    model = build(spec, seed=0).eval()
    quantize_model(model, bits)
    save_quantized(folder / "simulation", model, spec)
    metadata = ModelMetadata.of(spec, groups=("a", "b"), provenance=64 * "0")
    start = clock()
    write_packed(folder / "packed", model, metadata)
    return clock() - start


class Measured(NamedTuple):
    """Bytes of the packed file, of the same at 8 bits, and what is counted; seconds."""

    size: int
    int8: int
    counted: SizeReport
    written: float
    built: float
    loads: Pairs


def files(spec: ModelSpec, granularity: str, rounds: int, clock: Clock) -> Measured:
    """Write, weigh and load one model's files; refuse to time one whose logits are not the simulation's."""
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
        loads = alternate(
            partial(load_quantized, folder / "simulation"),
            partial(load_packed, folder / "packed"),
            rounds=rounds,
            clock=clock,
        )
        built = statistics.median(seconds(lambda: skeleton(spec, folded=False), clock) for _ in range(rounds))
    return Measured(size, int8, counted, written, built, loads)


def cells(spec: ModelSpec, granularity: str, found: Measured) -> list[str]:
    """Return the cells of one row."""
    counted, (other, load) = found.counted, map(statistics.median, (found.loads.baseline, found.loads.ours))
    return [
        spec.name, granularity, f"{found.size / MEGABYTE:.3f}", f"{counted.weights / MEGABYTE:.3f}",
        f"{found.size / counted.packed:.5f}", f"{found.size / found.int8:.3f}", f"{found.written:.2f}", f"{load:.2f}",
        f"{found.built:.2f}", f"{other:.2f}", f"{found.loads.ratio:.2f}",
    ]  # fmt: skip


def rows(quick: bool) -> Iterator[Row]:
    """Yield bytes and loading of packed files at 64 px, and the packing of a stream ÷ copying it."""
    for name, granularity in FEW[:1] if quick else FEW:
        spec = ModelSpec(name, ("a", "b"), 64, (0.5,) * 3, (0.25,) * 3)
        found = files(spec, granularity, 15, CLOCKS["cpu"])
        id, model = f"packed/{name}-{granularity}", f"{name} {granularity}, 2/4/8 bits"
        what = f"{model}: bytes of the packed file ÷ "
        counted = what + "bytes counted for weights, scales, widths and the rest"
        yield exact(f"{id}-bytes", counted, found.size, found.counted.packed, wanted=WANTED, unit="bytes")
        yield exact(f"{id}-of-8-bits", f"{what}of the same at 8 bits", found.size, found.int8, wanted=1.0, unit="bytes")
        yield found.loads.row(f"{id}-load", f"{model}: load the packed file ÷ the quantize stage's file")
    random = np.random.default_rng(0)
    codes = random.integers(0, 16, CODES, dtype=np.uint8)
    stream, target = pack(codes, 4), np.empty_like(codes)
    copy = partial(np.copyto, target, codes)
    for verb, work in (("pack", partial(pack, codes, 4)), ("unpack", partial(unpack, stream, CODES, 4))):
        pairs = alternate(copy, work, rounds=5 if quick else 9)
        yield pairs.row(f"packed/{verb}-4-bits", f"{verb} {CODES // 10**6} M codes of 4 bits ÷ copying them as bytes")


def best(function: Callable[[], object], rounds: int, clock: Clock) -> float:
    return min(seconds(function, clock) for _ in range(rounds))


def streams(rounds: int, clock: Clock) -> None:
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
    add_clock(parser)
    arguments = parser.parse_args()
    clock = CLOCKS[arguments.clock]
    torch.set_num_threads(arguments.threads)
    print(
        f"| model ({arguments.clock}) | granularity | MB | Σ bits/8 MB | ÷ counted (≤ {WANTED}) | ÷ 8 bits", end=" | "
    )
    print("write s | load s | of it skeleton s | load simulation s | packed ÷ simulation |")
    print("|---|---|" + "--:|" * 9)
    for granularity in arguments.granularities:
        for name in arguments.models:
            spec = ModelSpec(name, ("a", "b"), arguments.size, (0.5,) * 3, (0.25,) * 3)
            found = files(spec, granularity, arguments.rounds, clock)
            print("| " + " | ".join(cells(spec, granularity, found)) + " |", flush=True)
    streams(arguments.rounds, clock)


if __name__ == "__main__":
    main()
