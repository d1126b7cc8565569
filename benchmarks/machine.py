"""What the figures were measured on: processor, cores, memory, system, versions, GPU."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scipy", "onnxruntime", "openvino", "dvc")


def describe_machine(threads: int) -> dict[str, str | int | float]:
    """Return a flat description; ``cpu`` is what decides whether two tables may be compared closely."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "cpu": cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count() or 1,
        "threads": threads,
        "memory_gb": round(memory / 1e9, 1),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "clock": "processor seconds of the measured processes, unless a row says otherwise",
    }


def cpu_model(path: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name as the kernel has it, with its family and model numbers; else what Python says."""
    if not path.is_file():
        return platform.processor() or platform.machine()
    fields: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    numbers = ", ".join(f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields)
    return f"{fields.get('model name', platform.machine())} ({numbers})" if numbers else platform.machine()
