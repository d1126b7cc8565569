"""Presets: the published methods, and ours, as named settings of params.yaml. Data, not code.

A preset fixes every setting that makes the method what it is, so that its meaning does not depend on what params.yaml
holds; everything else (data, model, budget ``assign.bits`` and ``assign.levels``, epochs, step sizes) stays the user's
and is equal for all methods of a comparison. Methods that are fine-tuned use the same ``quantize.epochs``.

Sources. FairQuant: Wørgaard & Selvan 2026, arXiv 2602.23192 (importance maps, reducers, fairness loss, learned widths).
FairGRAPE: Lin, Kim & Joo 2022, arXiv 2207.10888 (group-wise first-order importance, there for pruning). FairQuantize:
Guo et al. 2024, MICCAI (importance to the unprivileged group less that to the privileged one). HAWQ: Dong et al. 2019,
arXiv 1905.03696 (second-order sensitivity). Fake quantization and fine-tuning through it: Jacob et al. 2018, arXiv
1712.05877. Post-training quantization: Nagel et al. 2021, arXiv 2106.08295. Codebooks: Han, Mao & Dally 2016, arXiv
1510.00149.

    python -m fairquant.presets              # the table
    python -m fairquant.presets fairgrape    # -S flags for dvc exp run
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from fairquant.errors import ConfigError, UserError

Setting = str | int | float


@dataclass(frozen=True)
class Preset:
    """One method: ``settings`` by dotted key of params.yaml, and keys in ``needs`` that the user must set.

    ``meaning`` is one line; ``source`` says where the method is from.
    """

    name: str
    meaning: str
    source: str
    settings: Mapping[str, Setting]
    needs: tuple[str, ...] = ()

    @property
    def overrides(self) -> tuple[str, ...]:
        """The settings as ``dvc exp run -S`` takes them.

        >>> PRESETS["uniform4"].overrides
        ('quant_mode=uniform', 'quantize.uniform_bits=4')
        """
        return tuple(f"{key}={value}" for key, value in self.settings.items())


def _preset(name: str, meaning: str, source: str, *parts: Mapping[str, Setting], needs: tuple[str, ...] = ()) -> Preset:
    merged = {key: value for part in parts for key, value in part.items()}
    return Preset(name, meaning, source, MappingProxyType(merged), needs)


_UNDISTILLED: dict[str, Setting] = {"quantize.distill.weight": 0}


def _uniform(bits: int) -> dict[str, Setting]:
    return {"quant_mode": "uniform", "quantize.uniform_bits": bits}


def _uniform_tuned(bits: int) -> dict[str, Setting]:
    return {"allocator": "uniform", "assign.uniform_bits": bits}


def _levels(importance: str, reducer: str) -> dict[str, Setting]:
    return {"importance_metric": importance, "reducer": reducer, "allocator": "levels"}


def _both(bits: int) -> dict[str, Setting]:
    return {**_uniform_tuned(bits), "quantize.activations.bits": bits}


_TUNED: dict[str, Setting] = {"quant_mode": "fair_static_qat", "quantize.fairness_weight": 0, **_UNDISTILLED}
_FAIR: dict[str, Setting] = {"quantize.fairness_loss": "gap", **_UNDISTILLED}
_PRICED: dict[str, Setting] = {
    "importance_metric": "fisher",
    "reducer": "cvar",
    "assign.reducers.cvar.alpha": 0.5,
    "allocator": "optimal",
    "quantize.scale": "weighted",
    "quantize.correction_images": 2048,
}
_PROTECTED: dict[str, Setting] = {
    "quantize.fairness_loss": "compression_drop",
    "quantize.fairness_weight": 1,
    "quantize.distill.weight": 4,
    "quantize.distill.temperature": 2,
}
_SIGNED_GROUPS = ("assign.reducers.subtractive.unprivileged", "assign.reducers.subtractive.privileged")

_FAIRQUANT = "FairQuant, arXiv 2602.23192"
_UNIFORM = "uniform rounding, Jacob et al. 2018"
_QAT = "quantization-aware training, Jacob et al. 2018"
_PTQ = "post-training quantization, Nagel et al. 2021"

_ALL = (
    _preset("fp32", "full precision, nothing is quantized", "the reference of every change", {"quant_mode": "none"}),
    _preset("uniform8", "8 bits everywhere, not fine-tuned", _UNIFORM, _uniform(8)),
    _preset("uniform4", "4 bits everywhere, not fine-tuned", _UNIFORM, _uniform(4)),
    _preset("uniform8_ft", "8 bits everywhere, fine-tuned as long as the others", _UNIFORM, _uniform_tuned(8), _TUNED),
    _preset("uniform4_ft", "4 bits everywhere, fine-tuned as long as the others", _UNIFORM, _uniform_tuned(4), _TUNED),
    _preset("w16a16", "16-bit weights and activations, fine-tuned as long as the others", _QAT, _both(16), _TUNED),
    _preset("w8a8", "8-bit weights and activations, fine-tuned as long as the others", _QAT, _both(8), _TUNED),
    _preset("w4a4", "4-bit weights and activations, fine-tuned as long as the others", _QAT, _both(4), _TUNED),
    _preset("w8a8_ptq", "as w8a8, calibrated instead of fine-tuned", _PTQ, _both(8), {"quant_mode": "ptq_static"}),
    _preset("w4a4_ptq", "as w4a4, calibrated instead of fine-tuned", _PTQ, _both(4), {"quant_mode": "ptq_static"}),
    _preset(
        "dynamic8",
        "as w8a8_ptq, each input with a range of its own",
        _PTQ,
        _both(8),
        {"quant_mode": "ptq_dynamic"},
    ),  # fmt: skip
    _preset(
        "kmeans4",
        "codebooks of 16 values per layer, the values fine-tuned as long as the others",
        "Deep Compression, arXiv 1510.00149",
        _uniform_tuned(4),
        _TUNED,
        {"quant_mode": "kmeans", "quantize.codebook.per": "tensor", "quantize.codebook.tune": True},
    ),  # fmt: skip
    _preset(
        "hybrid4",
        "4 bits under a classifier in full precision, not fine-tuned",
        "mixed precision by hand",
        {"quant_mode": "hybrid", "quantize.hybrid.backbone_bits": 4, "quantize.hybrid.classifier_bits": 32},
    ),  # fmt: skip
    _preset(
        "hawq", "second-order importance, mean over groups", "HAWQ, arXiv 1905.03696", _levels("hawq", "mean"), _TUNED
    ),  # fmt: skip
    _preset(
        "fairgrape",
        "grape importance, the largest of the groups counts",
        "FairGRAPE, arXiv 2207.10888",
        _levels("grape", "max"),
        _TUNED,
    ),  # fmt: skip
    _preset(
        "fairquantize",
        "grape importance, unprivileged less privileged group (two groups, named in params)",
        "FairQuantize, MICCAI 2024",
        _levels("grape", "subtractive"),
        _TUNED,
        needs=_SIGNED_GROUPS,
    ),  # fmt: skip
    _preset(
        "fq_static",
        "grape importance balanced over groups, not fine-tuned",
        _FAIRQUANT,
        _levels("grape", "balanced"),
        {"quant_mode": "fair_static"},
    ),  # fmt: skip
    _preset(
        "fq_qat",
        "grape importance balanced over groups, fine-tuned with the fairness loss",
        _FAIRQUANT,
        _levels("grape", "balanced"),
        {"quant_mode": "fair_static_qat"},
        _FAIR,
    ),  # fmt: skip
    _preset(
        "fq_iterative",
        "as fq_qat, units frozen in rounds, importance measured anew in each",
        _FAIRQUANT,
        _levels("grape", "balanced"),
        {"quant_mode": "iterative_qat"},
        _FAIR,
    ),  # fmt: skip
    _preset(
        "fq_baq",
        "as fq_qat, bit-widths learned from there on",
        _FAIRQUANT,
        _levels("grape", "balanced"),
        {"quant_mode": "baq_learnable"},
        _FAIR,
    ),  # fmt: skip
    _preset(
        "ours_static",
        "widths of least predicted loss of the worst half of the groups within budget, not fine-tuned",
        "docs/method.md",
        _PRICED,
        {"quant_mode": "fair_static"},
    ),  # fmt: skip
    _preset(
        "ours",
        "as ours_static, distilled from full precision, no group may lose more than all",
        "docs/method.md",
        _PRICED,
        {"quant_mode": "fair_static_qat"},
        _PROTECTED,
    ),  # fmt: skip
)

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})
"""Every preset by name, in the order tables show them."""


def get(name: str) -> Preset:
    """Return the preset ``name``; an unknown name raises ``ConfigError``."""
    if name not in PRESETS:
        raise ConfigError(f"method: got {name!r}; allowed: {' | '.join(PRESETS)}")
    return PRESETS[name]


def flags(preset: Preset) -> str:
    """Return the ``-S`` flags of ``dvc exp run``; what the user must fill in stands in angle brackets.

    >>> flags(PRESETS["fp32"])
    '-S quant_mode=none'
    """
    values = [*preset.overrides, *(f"{key}=<group>" for key in preset.needs)]
    return " ".join(f"-S {shlex.quote(value)}" for value in values)


def table() -> str:
    """Return all presets as aligned text: name, meaning, source."""
    width = max(map(len, PRESETS))
    return "\n".join(f"{p.name.ljust(width)}  {p.meaning} [{p.source}]" for p in PRESETS.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, or the flags of one preset; an unknown name is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m fairquant.presets", description="methods as settings")
    parser.add_argument("name", nargs="?", help="print the -S flags of this method")
    name = parser.parse_args(arguments).name
    try:
        print(table() if name is None else flags(get(name)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
