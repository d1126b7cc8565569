"""Cost of fake-quantizing activations: the operation beside torch's own, each observer, and a whole resnet18.

    python benchmarks/bench_activation.py [--threads 2] [--rounds 15] [--size 64] [--batch 64] [--clock wall|cpu]

Prints three markdown tables: the operation on tensors as resnet18 has them (forward alone, forward and backward, in
milliseconds, and the median of the rounds' ratios to ``torch.fake_quantize_per_tensor_affine`` with tensors for scale
and zero point); what it takes to observe a million values, and to find the range at the end; a training step and an
evaluation pass with the input of every convolution and linear layer at 8 bits, beside full precision. On a machine
that is busy with other work, ``--threads 1 --clock cpu`` is the clock to trust.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.bench_quantize import batch, evaluator, trainer
from benchmarks.table import CLOCKS, Clock, Pairs, Row, add_clock, alternate
from fairquant import plugins
from fairquant.models.layers import quantizable_layers
from fairquant.quantize.activation import ActivationQuantizer
from fairquant.quantize.affine import Codes, fake_quantize_affine

CODES = Codes.of(8, "asymmetric")
SHAPES = ((64, 64, 16, 16), (64, 512, 2, 2), (1, 64, 56, 56))


def theirs(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, CODES.least, CODES.largest)


def ours(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return fake_quantize_affine(x, scale, zero_point, CODES)


def operation(shape: tuple[int, ...], rounds: int, clock: Clock) -> Iterator[tuple[str, Pairs]]:
    """Yield (forward or both, pairs of torch's and ours) of one shape; refuse what does not agree to the last bit."""
    x = torch.randn(shape).to(memory_format=torch.channels_last)
    scale, zero_point = CODES.grid(x.min() * 0.9, x.max() * 0.9)
    if not torch.equal(*(f(x, scale, zero_point).view(torch.int32) for f in (theirs, ours))):
        raise AssertionError("the two operations differ")
    leaf, upstream = x.clone().requires_grad_(), torch.randn_like(x)
    for name, tensor in (("forward", x), ("forward and backward", leaf)):

        def once(operation: Callable[..., Tensor], tensor: Tensor = tensor) -> None:
            out = operation(tensor, scale, zero_point)
            if tensor.requires_grad:
                out.backward(upstream)

        yield name, alternate(lambda once=once: once(theirs), lambda once=once: once(ours), rounds=rounds, clock=clock)


def observing(name: str, scheme: str, rounds: int, clock: Clock) -> None:
    observer = plugins.load("observer", name).make_observer(bits=8, scheme=scheme, momentum=0.1, percentile=99.99)
    x = torch.randn(64, 64, 16, 16).to(memory_format=torch.channels_last)
    seconds: dict[str, list[float]] = {"observe": [], "range": []}
    for _ in range(rounds):
        for step, function in (("observe", lambda: observer(x)), ("range", observer.range)):
            start = clock()
            function()
            seconds[step].append(clock() - start)
    observed, found = (statistics.median(column) * 1e3 for column in seconds.values())
    kept = sum(value.nbytes for value in observer.state_dict().values())
    print(f"| {name} | {scheme} | {observed * 1e6 / x.numel():.2f} | {found:.1f} | {kept / 1e3:.1f} |", flush=True)


def with_activations(model: nn.Module, *, dynamic: bool) -> nn.Module:
    """Return a copy whose layers quantize their input to 8 bits, in training by a moving average."""
    model = copy.deepcopy(model)
    for layer in quantizable_layers(model).values():
        quantizer = ActivationQuantizer(bits=8, scheme="asymmetric", observer="moving_average", dynamic=dynamic)
        layer.add_module("activation", quantizer)
        layer.register_forward_pre_hook(lambda layer, inputs: (layer.activation(inputs[0]),))
    return model


def whole_model(size: int, count: int, rounds: int, clock: Clock) -> Iterator[tuple[str, Pairs]]:
    """Yield (case, pairs of full precision and 8-bit inputs of layers) of a resnet18."""
    model, images, labels = batch(size, count)
    for case, dynamic in (("static", False), ("dynamic", True)):
        plain, quantized = copy.deepcopy(model), with_activations(model, dynamic=dynamic)
        steps = (trainer(m, images, labels) for m in (plain, quantized))
        yield f"train step, {case}", alternate(*steps, rounds=rounds, clock=clock)
        passes = (evaluator(m, images) for m in (plain, quantized))
        yield f"evaluation, {case}", alternate(*passes, rounds=rounds, clock=clock)


def rows(quick: bool) -> Iterator[Row]:
    """Yield the operation ÷ torch's kernel, and resnet18 with 8-bit activations ÷ full precision."""
    torch.manual_seed(0)
    clock, rounds = CLOCKS["cpu"], 5 if quick else 9
    for name, pairs in operation(SHAPES[0], 5 * rounds, clock):
        what = f"8-bit activation rounding, {name}, {'x'.join(map(str, SHAPES[0]))} ÷ torch's per-tensor kernel"
        yield pairs.row(f"activation/{name.replace(' ', '-')}", what, wanted=1.0)
    if not quick:
        for case, pairs in whole_model(64, 64, rounds, clock):
            what = f"resnet18 64 px, batch 64, 8-bit activations: {case} ÷ fp32"
            yield pairs.row(f"activation/{case.replace(', ', '-').replace(' ', '-')}", what)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    add_clock(parser)
    arguments = parser.parse_args()
    clock = CLOCKS[arguments.clock]
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    print(f"| operation ({arguments.clock}) | shape | torch ms | ours ms | ratio |\n|---|---|--:|--:|--:|")
    for shape in SHAPES:
        for name, pairs in operation(shape, arguments.rounds, clock):
            print(f"| {name} | {'x'.join(map(str, shape))} | {cells(pairs, 1e3, 2)} |", flush=True)
    print("\n| observer | scheme | ms per million values | range ms | kB kept |\n|---|---|--:|--:|--:|")
    for name in plugins.names("observer"):
        for scheme in ("asymmetric", "symmetric"):
            observing(name, scheme, arguments.rounds, clock)

    print("\n| resnet18, inputs of layers at 8 bits | fp32 s | quantized s | ratio |\n|---|--:|--:|--:|")
    for case, pairs in whole_model(arguments.size, arguments.batch, arguments.rounds, clock):
        print(f"| {case} | {cells(pairs, 1, 4)} |", flush=True)


def cells(pairs: Pairs, factor: float, digits: int) -> str:
    """Return the cells of both medians, times ``factor``, and of the ratio."""
    medians = (statistics.median(column) * factor for column in (pairs.baseline, pairs.ours))
    return " | ".join([*(f"{value:.{digits}f}" for value in medians), f"{pairs.ratio:.3f}"])


if __name__ == "__main__":
    main()
