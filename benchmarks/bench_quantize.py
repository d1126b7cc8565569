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
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torchvision.models import resnet18

from fairquant.allocate.bitmap import BitMap, unit_shape
from fairquant.config.quantization import BaqSection
from fairquant.config.schema import TrainSection
from fairquant.models.layers import quantizable_layers
from fairquant.quantize.attach import attach_learned, quantize_model
from fairquant.train.schedule import make_optimizer
from fairquant.train.terms import LossBatch
from fairquant.train.width_control import PRICING_STEPS, WidthControl

WIDTHS, SHARES = (2, 4, 8), (0.2, 0.4, 0.4)


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
        optimizer.step()
        control.after_step(next(steps))

    for _ in range(PRICING_STEPS):  # once a run: no step like the others
        step()
    return step


def evaluator(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    model.eval()

    @torch.no_grad()
    def run() -> None:
        model(images)

    return run


def compare(
    a: Callable[[], None], b: Callable[[], None], rounds: int, clock: Callable[[], float]
) -> tuple[float, float, float]:
    """Return median seconds of ``a`` and ``b`` and the median of b/a over rounds in alternating order."""
    pairs = []
    for number in range(rounds + 2):
        seconds = {}
        for name, function in (("a", a), ("b", b)) if number % 2 else (("b", b), ("a", a)):
            start = clock()
            function()
            seconds[name] = clock() - start
        pairs.append((seconds["a"], seconds["b"]))
    pairs = pairs[2:]  # the first rounds warm caches up
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    return first, second, statistics.median(b / a for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--scales", nargs="+", default=["absmax"])
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (arguments.batch,))
    model = resnet18(num_classes=10).to(memory_format=torch.channels_last)
    print(f"| case ({arguments.clock}) | fp32 s | quantized s | ratio |\n|---|---|---|---|")
    for scale in arguments.scales:
        for granularity in ("per_tensor", "per_channel", "per_param"):
            plain, quantized = copy.deepcopy(model), copy.deepcopy(model)
            quantize_model(quantized, mixed(model, granularity), scale=scale)
            for name, make in (
                ("train step", lambda m: trainer(m, images, labels)),
                ("evaluation", lambda m: evaluator(m, images)),
            ):
                a, b, ratio = compare(make(plain), make(quantized), arguments.rounds, clock)
                print(f"| {name} {scale} {granularity} | {a:.4f} | {b:.4f} | {ratio:.3f} |", flush=True)
    plain, learned = trainer(copy.deepcopy(model), images, labels), learner(copy.deepcopy(model), images, labels)
    a, b, ratio = compare(plain, learned, arguments.rounds, clock)
    print(f"| train step, learned widths per_channel | {a:.4f} | {b:.4f} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
