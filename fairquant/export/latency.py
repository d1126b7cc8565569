"""How long a forward pass takes: models measured by turns in one run, so that a busy machine slows all of them alike.

Each round runs every model once on the same images, beginning with another one each time; a model's times are those
of its calls, by the wall clock. Rounds before the first that counts warm up caches, threads and memory.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from fairquant.config.export import LatencySection
from fairquant.export.runtimes import Floats, open_session
from fairquant.models.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn

Forward = Callable[[Floats], Floats]
WARM_UP = 3
"""Rounds that do not count."""


def measure(
    models: Mapping[str, Forward],
    *,
    shape: Sequence[int],
    batches: Sequence[int],
    runs: int,
    seed: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the time a call of each model takes.

    Args:
        models: functions from images float32 (B, *shape) to logits.
        shape: of one image.
        batches: numbers of images B, each at least 1.
        runs: calls that count of each model and number of images, at least 1.
        seed: of the images, normal with mean 0 and deviation 1.
        clock: seconds.

    Returns:
        {B as text: {model: {``median_ms``, ``p95_ms``}}}; the 95th percentile is linear between calls.
    """
    generator = np.random.default_rng(seed)
    result = {}
    with tqdm(total=len(batches) * (WARM_UP + runs) * len(models), desc="latency", unit="run", disable=None) as bar:
        for batch in batches:
            images = generator.standard_normal((batch, *shape), np.float32)
            seconds = by_turns(models, images, runs=runs, clock=clock, after=bar.update)
            result[str(batch)] = {name: _summary(times) for name, times in seconds.items()}
    return result


def by_turns(
    models: Mapping[str, Forward],
    images: Floats,
    *,
    runs: int,
    clock: Callable[[], float] = time.perf_counter,
    after: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Return the seconds of each model's ``runs`` calls that count; the n-th of all models are of the same round.

    ``after`` is called after every call, outside the time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(WARM_UP + runs):
        for name in _rotated(list(models), number):
            start = clock()
            models[name](images)
            seconds[name].append(clock() - start)
            after()
    return {name: times[WARM_UP:] for name, times in seconds.items()}


def latency(
    model: nn.Module, spec: ModelSpec, quantized: str | Path, *, runtimes: Sequence[str], section: LatencySection
) -> dict[str, Any]:
    """Return the times of the full-precision model and of the exported file beside it.

    Args:
        model: full precision, on the CPU; run by torch (``eager``) and, as an ONNX file made for this, by the runtimes.
        spec: of ``model``.
        quantized: the exported ONNX file.
        runtimes: onnxruntime | openvino, those to measure.
        section: how often, on how many images and threads.

    Returns:
        ``threads``, ``runs``, ``image_size`` and ``batch``: ``measure``'s result for ``torch_fp32``, and for each
        runtime ``<runtime>_fp32`` (full precision) and ``<runtime>`` (the exported file).

    Raises:
        UserError: a runtime is unknown or not installed.
        ArtifactError: a file cannot be run.
    """
    from fairquant.export.onnx_file import write_float_onnx

    with tempfile.TemporaryDirectory(prefix="fairquant-") as folder, torch_threads(section.threads):
        full = Path(folder) / "float.onnx"
        if runtimes:
            write_float_onnx(full, model, spec)
        models = {"torch_fp32": eager(model)}
        for suffix, file in (("_fp32", full), ("", Path(quantized))):
            for name in runtimes:
                models[name + suffix] = open_session(file, name, threads=section.threads).run
        shape = (spec.in_channels, spec.image_size, spec.image_size)
        times = measure(models, shape=shape, batches=section.batches, runs=section.runs, seed=0)
    return {"threads": section.threads, "runs": section.runs, "image_size": spec.image_size, "batch": times}


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let torch compute on ``threads`` inside the context."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def eager(model: nn.Module, *, channels_last: bool = True) -> Forward:
    """Return the forward pass of a copy of ``model`` in evaluation mode, without gradients.

    ``channels_last`` is how the pipeline itself runs models, and torch's faster layout of convolutions on the CPU; else
    everything lies as torch lays it without being asked.
    """
    import torch

    layout = torch.channels_last if channels_last else torch.contiguous_format
    copied = copy.deepcopy(model).eval().to(memory_format=layout)

    def forward(images: Floats) -> Floats:
        with torch.inference_mode():
            logits: Floats = copied(torch.from_numpy(images).contiguous(memory_format=layout)).numpy()
        return logits

    return forward


def _rotated(names: Sequence[str], number: int) -> list[str]:
    """Return ``names`` from position ``number`` on, then those before it.

    >>> _rotated(["a", "b", "c"], 4)
    ['b', 'c', 'a']
    """
    first = number % len(names) if names else 0
    return [*names[first:], *names[:first]]


def _summary(seconds: Sequence[float]) -> dict[str, float]:
    median, high = np.percentile(seconds, [50, 95]) * 1e3
    return {"median_ms": float(median), "p95_ms": float(high)}
