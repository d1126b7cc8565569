"""The ways of compressing an analysis compares, and what is done against unfairness besides. Data, not code.

Each method is told a width. ``ptq_*``, ``sensitive`` and ``qat`` quantize activations too (8 bits unless --set says
otherwise), and those of ``scripts.curves.methods`` take part by their names, with ``_ft`` behind it fine-tuned: they
spend the packed bytes of the width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from fairquant import plugins
from fairquant.allocate.info import ModelInfo
from fairquant.errors import UserError
from fairquant.report.analysis import JOIN, base_of
from scripts.curves import methods as curves

Settings = Mapping[str, Any]
NONE = "none"
TUNED = "_ft"
PLAIN: Settings = {
    "allocator": "uniform",
    "granularity": "per_channel",
    "importance_metric": "grape",
    "reducer": "mean",
    "quantize.fairness_loss": NONE,
    "quantize.fairness_weight": 0,
    "quantize.distill.weight": 0,
}
"""What leaves a method nothing but its own way of quantizing."""


@dataclass(frozen=True)
class Method:
    """One way of compressing.

    Attributes:
        meaning: one line.
        settings: what makes the method, by dotted key of params.yaml.
        width: what a width of b bits adds.
        defaults: settings that --set may change.
        tuned: whether weights are fine-tuned.
    """

    meaning: str
    settings: Settings
    width: Callable[[int], Settings]
    defaults: Settings = field(default_factory=dict)
    tuned: bool = False


def _same(bits: int) -> Settings:
    return {"assign.uniform_bits": bits, "quantize.uniform_bits": bits}


def _backbone(bits: int) -> Settings:
    return {**_same(bits), "quantize.hybrid.backbone_bits": bits}


def _plain(meaning: str, mode: str, *, tuned: bool = False, defaults: Settings | None = None, **more: Any) -> Method:
    settings = {**PLAIN, "quant_mode": mode, **{key.replace("__", "."): value for key, value in more.items()}}
    return Method(meaning, settings, _same, defaults or {}, tuned)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "ptq_static": _plain("after training, activation ranges found on random images", "ptq_static",
                             quantize__calibration__sampling="random"),
        "ptq_balanced": _plain("ptq_static, ranges found on as many images of each group", "ptq_static",
                               quantize__calibration__sampling="balanced"),
        "ptq_worst_group": _plain("ptq_static, ranges found on more images of the worst-served group", "ptq_static",
                                  quantize__calibration__sampling="worst_group"),
        "ptq_dynamic": _plain("after training, activation ranges of each batch itself", "ptq_dynamic"),
        "sensitive": _plain("ptq_static, the layers that a single group needs most held at 8 bits", "ptq_static",
                            quantize__calibration__sampling="random",
                            defaults={"assign.protect.sensitive": 2, "assign.protect.sensitive_bits": 8}),
        "hybrid": Method("backbone at the width, classifier in full precision", {**PLAIN, "quant_mode": "hybrid"},
                         _backbone, {"quantize.hybrid.classifier_bits": 32}),
        "kmeans": _plain("codebooks of 2^b centroids", "kmeans"),
        "qat": _plain("fine-tuned through quantized weights and activations", "fair_static_qat", tuned=True,
                      defaults={"quantize.activations.bits": 8}),
    }
)  # fmt: skip
"""Every method of its own by name, in the order of the tables."""
BASE = "qat"
"""What mitigation is added to unless the command line says otherwise."""


def allowed() -> tuple[str, ...]:
    """Return the names of all methods: the analysis' own, then those of the curves, plain and fine-tuned."""
    plain = (name for name, method in curves.METHODS.items() if not method.only_tuned)
    return (*METHODS, *plain, *(f"{name}{TUNED}" for name in curves.METHODS))


def check(name: str, *, option: str = "--methods") -> None:
    """Raise ``UserError`` for a method that is not known."""
    if name not in allowed():
        raise UserError(f"{option}: got {name!r}; allowed: {' | '.join(allowed())}")


def is_tuned(name: str) -> bool:
    """Return whether ``name`` fine-tunes weights.

    >>> is_tuned("qat+gap"), is_tuned("ptq_static"), is_tuned("uniform_ft"), is_tuned("uniform")
    (True, False, True, False)
    """
    base = base_of(name)
    return METHODS[base].tuned if base in METHODS else base.endswith(TUNED)


def losses() -> tuple[str, ...]:
    """Return the fairness losses there are."""
    return tuple(name for name in plugins.names("loss") if name != NONE)


def postprocessors() -> tuple[str, ...]:
    """Return the post-processors there are."""
    return plugins.names("postprocess")


def settings_of(name: str, info: ModelInfo, bits: int, given: Settings) -> Settings | None:
    """Return the settings of ``name``, mitigated or not, at ``bits`` on top of ``given``; None: no such point.

    What is post-processed has the settings of its base, and the post-processor besides.
    """
    base, _, mitigation = name.partition(JOIN)
    own = _compression(base, info, bits, given)
    if own is not None and mitigation in postprocessors():
        return {**own, "evaluate.postprocess": [mitigation]}
    if own is None or mitigation not in losses():
        return own
    weight = given.get("quantize.fairness_weight", 1)
    return {**own, "quantize.fairness_loss": mitigation, "quantize.fairness_weight": weight}


def _compression(name: str, info: ModelInfo, bits: int, given: Settings) -> Settings | None:
    if name in METHODS:
        method = METHODS[name]
        return {**method.defaults, **given, **method.settings, **method.width(bits)}
    tuned = name.endswith(TUNED)
    own = curves.settings_of(name.removesuffix(TUNED), info, float(bits), tuned=tuned)
    return None if own is None else {**given, **own}
