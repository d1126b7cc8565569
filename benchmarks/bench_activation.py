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
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from benchmarks.bench_quantize import compare, evaluator, trainer
from fairquant import plugins
from fairquant.models.layers import quantizable_layers
from fairquant.quantize.activation import ActivationQuantizer
from fairquant.quantize.affine import Codes, fake_quantize_affine

CODES = Codes.of(8, "asymmetric")


def theirs(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, CODES.least, CODES.largest)


def ours(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return fake_quantize_affine(x, scale, zero_point, CODES)


def operation(shape: tuple[int, ...], rounds: int, clock: Callable[[], float]) -> None:
    """Print the rows of one shape; refuse to time what does not agree to the last bit."""
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

        a, b, ratio = compare(lambda once=once: once(theirs), lambda once=once: once(ours), rounds, clock)
        size = "x".join(map(str, shape))
        print(f"| {name} | {size} | {a * 1e3:.2f} | {b * 1e3:.2f} | {ratio:.2f} |", flush=True)


def observing(name: str, scheme: str, rounds: int, clock: Callable[[], float]) -> None:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    print(f"| operation ({arguments.clock}) | shape | torch ms | ours ms | ratio |\n|---|---|--:|--:|--:|")
    for shape in ((64, 64, 16, 16), (64, 512, 2, 2), (1, 64, 56, 56)):
        operation(shape, arguments.rounds, clock)
    print("\n| observer | scheme | ms per million values | range ms | kB kept |\n|---|---|--:|--:|--:|")
    for name in plugins.names("observer"):
        for scheme in ("asymmetric", "symmetric"):
            observing(name, scheme, arguments.rounds, clock)

    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (arguments.batch,))
    model = resnet18(num_classes=10).to(memory_format=torch.channels_last)
    print("\n| resnet18, inputs of layers at 8 bits | fp32 s | quantized s | ratio |\n|---|--:|--:|--:|")
    for case, dynamic in (("static", False), ("dynamic", True)):
        plain, quantized = copy.deepcopy(model), with_activations(model, dynamic=dynamic)
        for name, make in (("train step", lambda m: trainer(m, images, labels)), ("evaluation", None)):
            a_run, b_run = (make(m) if make else evaluator(m, images) for m in (plain, quantized))
            a, b, ratio = compare(a_run, b_run, arguments.rounds, clock)
            print(f"| {name}, {case} | {a:.4f} | {b:.4f} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
