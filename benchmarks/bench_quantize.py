"""Cost of fake quantization beside full precision: a training step and an evaluation pass, alternating A/B.

    python benchmarks/bench_quantize.py [--threads 2] [--rounds 15] [--size 64] [--batch 64] [--clock wall|cpu]

Prints one markdown row per case: median seconds of both and the median of the rounds' ratios. On a machine that is
busy with other work, ``--threads 1 --clock cpu`` (processor seconds of this process) is the clock to trust.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import nn
from torchvision.models import resnet18

from benchmarks.table import CLOCKS, Clock, Pairs, Row, add_clock, alternate
from fairquant.allocate.bitmap import BitMap, unit_shape
from fairquant.config.quantization import BaqSection
from fairquant.config.schema import TrainSection
from fairquant.models.layers import quantizable_layers
from fairquant.quantize.attach import attach_learned, quantize_model
from fairquant.train.schedule import make_optimizer
from fairquant.train.terms import LossBatch
from fairquant.train.width_control import PRICING_STEPS, WidthControl

WIDTHS, SHARES = (2, 4, 8), (0.2, 0.4, 0.4)
ROWS: dict[str, tuple[str, float | None]] = {
    "train step absmax per_tensor": ("train-per_tensor", None),
    "evaluation absmax per_tensor": ("evaluate-per_tensor", None),
    "train step absmax per_channel": ("train-per_channel", 1.05),
    "evaluation absmax per_channel": ("evaluate-per_channel", 1.03),
    "train step absmax per_param": ("train-per_param", 1.2),
    "evaluation absmax per_param": ("evaluate-per_param", 1.03),
    "train step, learned widths per_channel": ("train-learned", 1.12),
}
"""By case: the row's name, and the largest ratio wanted."""


def mixed(model: nn.Module, granularity: str) -> BitMap:
    rng = np.random.default_rng(0)
    layers = {
        name: np.asarray(
            rng.choice(WIDTHS, size=unit_shape(granularity, tuple(layer.weight.shape)), p=SHARES), dtype=np.uint8
        )
        for name, layer in quantizable_layers(model).items()
    }
    return BitMap(granularity, layers)


def trainer(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def learner(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """A step of baq_learnable: widths and dead zones are trained too, and the price of a bit follows the average."""
    bits = mixed(model, "per_channel")
    sizes = {name: layer.weight[0].numel() for name, layer in quantizable_layers(model).items()}
    attach_learned(model, bits, held=set(), bit_min=2, bit_max=8)
    control = WidthControl(model, sizes, BaqSection())
    control.begin(1, 10**6)
    section = TrainSection(lr=1e-4)
    optimizer = make_optimizer(model.train(), section, torch.device("cpu"), learning_rates=control.learning_rates())
    steps = itertools.count(1)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        logits = model(images)
        loss = nn.functional.cross_entropy(logits, labels) + control.term(LossBatch(logits, labels, labels, 1))
        loss.backward()
        number = next(steps)
        control.before_step(number)
        optimizer.step()
        control.after_step(number)

    for _ in range(PRICING_STEPS):  # once a run: no step like the others
        step()
    return step


def evaluator(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    model.eval()

    @torch.no_grad()
    def run() -> None:
        model(images)

    return run


def batch(size: int, count: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a resnet18 with random weights, ``count`` random images of ``size`` pixels and their labels."""
    torch.manual_seed(0)
    images = torch.randn(count, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (count,))
    return resnet18(num_classes=10).to(memory_format=torch.channels_last), images, labels


def cases(
    size: int, count: int, scales: Iterable[str], granularities: Iterable[str], rounds: int, clock: Clock
) -> Iterator[tuple[str, Pairs]]:
    """Yield (case, pairs of full precision and quantized)."""
    model, images, labels = batch(size, count)
    for scale in scales:
        for granularity in granularities:
            plain, quantized = copy.deepcopy(model), copy.deepcopy(model)
            quantize_model(quantized, mixed(model, granularity), scale=scale)
            steps = (trainer(m, images, labels) for m in (plain, quantized))
            yield f"train step {scale} {granularity}", alternate(*steps, rounds=rounds, clock=clock)
            passes = (evaluator(m, images) for m in (plain, quantized))
            yield f"evaluation {scale} {granularity}", alternate(*passes, rounds=rounds, clock=clock)
    steps = (make(copy.deepcopy(model), images, labels) for make in (trainer, learner))
    yield "train step, learned widths per_channel", alternate(*steps, rounds=rounds, clock=clock)


def rows(quick: bool) -> Iterator[Row]:
    """Yield resnet18 at 64 px, batch 64, mixed 2/4/8 bits, ÷ full precision."""
    granularities = ("per_channel",) if quick else ("per_tensor", "per_channel", "per_param")
    for case, pairs in cases(64, 64, ("absmax",), granularities, 5 if quick else 9, CLOCKS["cpu"]):
        id, wanted = ROWS[case]
        what = f"resnet18 64 px, batch 64, 2/4/8 bits: {case} ÷ fp32"
        yield pairs.row(f"quantize/{id}", what, wanted=wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--scales", nargs="+", default=["absmax"])
    add_clock(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"| case ({arguments.clock}) | fp32 s | quantized s | ratio |\n|---|---|---|---|")
    granularities = ("per_tensor", "per_channel", "per_param")
    settings = (arguments.scales, granularities, arguments.rounds, CLOCKS[arguments.clock])
    for case, pairs in cases(arguments.size, arguments.batch, *settings):
        fp32, quantized = (statistics.median(column) for column in (pairs.baseline, pairs.ours))
        print(f"| {case} | {fp32:.4f} | {quantized:.4f} | {pairs.ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
