"""Training: our loop beside a plain torch loop on the same images, and quantized steps beside full-precision ones.

    python -m benchmarks.bench_train [--threads 1] [--rounds 5] [--clock wall|cpu]
    python -m benchmarks.bench_train --device cuda --model resnet50 --size 224 --batch 256 --precision bf16 \
        --images 8192 --steps 10 [--compile]

On a GPU the clock stops when the GPU has finished. With ``--compile`` every step is compiled, full precision too, and
there are rows of compiled ÷ eager. Models are torchvision's, or timm's where torchvision has none of the name.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.bench_quantize import mixed
from benchmarks.results import row_text
from benchmarks.table import CLOCKS, Clock, Row, add_clock, alternate
from fairquant.config.quantization import BaqSection
from fairquant.config.schema import TrainSection
from fairquant.data.store import Store
from fairquant.devices import autocast
from fairquant.models.layers import quantizable_layers
from fairquant.quantize.attach import attach_learned, quantize_model
from fairquant.train.compiled import compiled
from fairquant.train.loop import fit
from fairquant.train.schedule import make_optimizer
from fairquant.train.terms import LossBatch
from fairquant.train.width_control import PRICING_STEPS, WidthControl

CLASSES, VALIDATION = 10, 8
Work = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """What is trained, where and how."""

    device: torch.device
    model: str = "resnet18"
    size: int = 64
    batch: int = 32
    precision: str = "fp32"
    images: int = 384
    steps: int = 1
    rounds: int = 5
    clock: str = "cpu"

    @property
    def time(self) -> Clock:
        """The clock; on a GPU the wall's, once all work that was started is done."""
        if self.device.type != "cuda":
            return CLOCKS[self.clock]

        def finished() -> float:
            torch.cuda.synchronize(self.device)
            return time.perf_counter()

        return finished

    def build(self) -> nn.Module:
        """Return the model with random weights, the same every time."""
        torch.manual_seed(0)
        if self.model in torchvision.models.list_models():
            made: nn.Module = torchvision.models.get_model(self.model, weights=None, num_classes=CLASSES)
        else:
            import timm

            made = timm.create_model(self.model, pretrained=False, num_classes=CLASSES)
        return made.to(self.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload, no-any-return]

    def __str__(self) -> str:
        """Say what is measured."""
        return f"{self.model} {self.size} px, batch {self.batch}, {self.precision}, {self.device.type}"


def random_store(setting: Setting) -> Store:
    """Return random images: ``setting.images`` to train on and a few to validate."""
    random = np.random.default_rng(0)
    n = setting.images + VALIDATION
    images = random.integers(0, 256, (n, setting.size, setting.size, 3), np.uint8)
    labels = random.integers(0, CLASSES, n)
    splits = np.where(np.arange(n) < setting.images, "train", "val").astype("<U5")
    meta = {"mean": [0.5] * 3, "std": [0.25] * 3, "checksum": "random"}
    return Store(
        images=images,
        labels=labels,
        groups=labels % 2,
        splits=splits,
        classes=tuple("0123456789"),
        group_names=("a", "b"),
        meta=meta,
        columns={},
    )


def our_epoch(setting: Setting, store: Store) -> Work:
    """Return one epoch of ``fit``, its validation included."""
    section = TrainSection(epochs=1, batch_size=setting.batch, augment="off", lr=1e-4)
    model, device, precision = setting.build(), setting.device, setting.precision
    return lambda: fit(model, store, section=section, seed=0, device=device, precision=precision, progress=False)


def plain_epoch(setting: Setting, store: Store) -> Work:
    """Return an epoch as one would write it: images in memory, an order, a copy, a step; nothing is validated."""
    model = setting.build()
    rows = store.indices("train")
    pixels, labels = torch.from_numpy(store.images[rows]), torch.from_numpy(store.labels[rows])
    if setting.device.type == "cuda":
        pixels, labels = pixels.pin_memory(), labels.pin_memory()

    def epoch() -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        for chosen in torch.split(torch.randperm(len(labels)), setting.batch):
            images = pixels[chosen].to(setting.device, non_blocking=True).permute(0, 3, 1, 2).float()
            images = images.sub_(127.5).div_(63.75)
            wanted = labels[chosen].to(setting.device, non_blocking=True)
            optimizer.zero_grad(set_to_none=True)
            with autocast(setting.device, setting.precision):
                logits = model(images)
            cross_entropy(logits.float(), wanted).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return epoch


def step_of(setting: Setting, model: nn.Module, control: WidthControl | None = None, *, fast: bool = False) -> Work:
    """Return ``setting.steps`` training steps on one batch, with what controls the widths, if they are learned."""
    shape = (setting.batch, 3, setting.size, setting.size)
    images = torch.randn(shape, device=setting.device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (setting.batch,), device=setting.device)
    rates = control.learning_rates() if control is not None else ()
    optimizer = make_optimizer(model, TrainSection(lr=1e-4), setting.device, learning_rates=rates)
    forward, numbers = compiled(model, fast), itertools.count(1)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(setting.device, setting.precision):
            logits: Tensor = forward(images)
        loss = cross_entropy(logits.float(), labels)
        if control is not None:
            loss = loss + control.term(LossBatch(logits, labels, labels, 1))
        torch.autograd.backward(loss)
        number = next(numbers)
        if control is not None:
            control.before_step(number)
        optimizer.step()
        if control is not None:
            control.after_step(number)

    for _ in range(PRICING_STEPS if control is not None else 1):  # steps like no other: pricing, compiling
        step()

    def several() -> None:
        for _ in range(setting.steps):
            step()

    return several


def quantized(setting: Setting) -> nn.Module:
    """Return the model with fixed widths, 2/4/8 bits by channel, Δ = max |w| / M."""
    model = setting.build()
    quantize_model(model, mixed(model, "per_channel"))
    return model


def learned(setting: Setting) -> tuple[nn.Module, WidthControl]:
    """Return the model with learned widths, and their control."""
    model = setting.build()
    sizes = {name: layer.get_parameter("weight")[0].numel() for name, layer in quantizable_layers(model).items()}
    attach_learned(model, mixed(model, "per_channel"), held=set(), bit_min=2, bit_max=8)
    control = WidthControl(model, sizes, BaqSection())
    control.begin(1, 10**6)
    return model, control


def measured(setting: Setting, *, fast: bool) -> Iterator[Row]:
    """Yield our loop ÷ a plain one, and quantized steps ÷ full precision; ``fast`` compiles and adds what it gains."""
    pairs = partial(alternate, rounds=setting.rounds, clock=setting.time)
    store = random_store(setting)
    loops = pairs(plain_epoch(setting, store), our_epoch(setting, store), warm_up=1)
    ours, plain = (setting.images / statistics.median(seconds) for seconds in (loops.ours, loops.baseline))
    what, note = f"{setting}: an epoch of fit ÷ of a plain loop", f"{ours:.0f} against {plain:.0f} images/s"
    yield loops.row("train/loop", what, wanted=round(1 / 0.95, 3), note=note)
    names = {"qat": "quantized weights", "baq": "learned widths"}
    for kind, wanted in (("qat", 1.05), ("baq", 1.10)):
        model, control = (quantized(setting), None) if kind == "qat" else learned(setting)
        steps = step_of(setting, setting.build(), fast=fast), step_of(setting, model, control, fast=fast)
        said = "compiled" if fast else "eager"
        yield pairs(*steps).row(
            f"train/{kind}-{said}", f"{setting}, {said}: a step with {names[kind]} ÷ fp32", wanted=wanted
        )
    if fast:
        for kind, model in (("fp32", setting.build()), ("qat", quantized(setting))):
            steps = step_of(setting, copy.deepcopy(model)), step_of(setting, model, fast=True)
            yield pairs(*steps).row(f"train/{kind}-compile", f"{setting}: a compiled {kind} step ÷ an eager one")


def rows(quick: bool) -> Iterator[Row]:
    """Yield resnet18 at 64 px, batch 32, on the CPU."""
    yield from measured(Setting(torch.device("cpu"), rounds=3 if quick else 5), fast=False)


def main() -> None:
    """Print a line per row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu | cuda | cuda:1 …")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    for name, value in {"size": 64, "batch": 32, "images": 384, "steps": 1, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    add_clock(parser, "cpu")
    given = vars(parser.parse_args())
    torch.set_num_threads(given.pop("threads"))
    fast = given.pop("compile")
    setting = Setting(torch.device(given.pop("device")), **given)
    with torch.cuda.device(setting.device) if setting.device.type == "cuda" else contextlib.nullcontext():
        for row in measured(setting, fast=fast):
            print(row_text(row), flush=True)


if __name__ == "__main__":
    main()
