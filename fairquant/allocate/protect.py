"""Layers held at a given width whatever the allocator would choose: by name pattern, by role, or for their sensitivity.

**Sensitivity.** With I_g(l) the importance of all weights of layer l to group g, and n(l) their number,

    sensitivity(l) = max_g  (I_g(l) / Σ_l' I_g(l'))  /  (n(l) / Σ_l' n(l'))

is the layer's share of the group's whole importance over its share of the parameters, for the group that needs it most:
1 is a layer that matters as much as its size, 3 one whose weights matter three times as much as the average weight does
to that group. Shares, because a group with large losses has large importance everywhere and would decide alone; over
the share of parameters, because protecting a layer costs bits in proportion to them; and the largest over groups, not
their mean or spread, because a layer that one group alone depends on is what an average hides, and one that all depend
on is no less worth keeping for being needed evenly.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt

from fairquant.config.schema import ProtectSection
from fairquant.errors import ConfigError

ROLES = ("first", "last", "classifier")


def protected_widths(protect: ProtectSection, layers: Sequence[str], roles: Mapping[str, str]) -> dict[str, int]:
    """Return layer → width of the protected among ``layers``, in their order.

    Each entry of ``protect.layers`` is a role (first | last | classifier, resolved by ``roles``) or a pattern in the
    style of file names (``layer4.*``, case matters). An entry that matches nothing raises ``ConfigError``.

    >>> protect = ProtectSection(layers=("first", "layer4.*"), bits=8)
    >>> protected_widths(protect, ["conv1", "layer1.0", "layer4.0", "fc"], {"first": "conv1"})
    {'conv1': 8, 'layer4.0': 8}
    """
    found = (matching_layers("assign.protect.layers", entry, layers, roles) for entry in protect.layers)
    held = {name for names in found for name in names}
    return {name: protect.bits for name in layers if name in held}


def sensitivities(totals: Mapping[str, npt.NDArray[np.floating[Any]]], sizes: Mapping[str, int]) -> dict[str, float]:
    """Return the sensitivity of each layer from its importance to each group, (G,) ≥ 0, and its number of weights.

    A group to which nothing matters has no share in any layer.

    >>> totals = {"conv1": np.array([6.0, 1.0]), "conv2": np.array([2.0, 3.0]), "fc": np.array([0.0, 4.0])}
    >>> sensitivities(totals, {"conv1": 25, "conv2": 50, "fc": 25})
    {'conv1': 3.0, 'conv2': 0.75, 'fc': 2.0}
    """
    whole, weights = np.sum([*totals.values()], axis=0), sum(sizes.values())
    shares = {name: np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0) for name, part in totals.items()}
    return {name: float(share.max()) * weights / sizes[name] for name, share in shares.items()}


def sensitive_widths(
    protect: ProtectSection,
    totals: Mapping[str, npt.NDArray[np.floating[Any]]],
    shapes: Mapping[str, tuple[int, ...]],
    named: Mapping[str, int],
) -> dict[str, int]:
    """Return layer → width of the ``protect.sensitive`` most sensitive layers that are not ``named``, in model order.

    Shares are those of the whole model, named layers included; equals are taken in model order. Raises ``ConfigError``
    for more layers than there are.

    >>> totals = {"conv1": np.array([6.0, 1.0]), "conv2": np.array([2.0, 3.0]), "fc": np.array([0.0, 4.0])}
    >>> shapes = {"conv1": (5, 5), "conv2": (5, 10), "fc": (5, 5)}
    >>> sensitive_widths(ProtectSection(sensitive=1, sensitive_bits=8), totals, shapes, {"conv1": 32})
    {'fc': 8}
    """
    free = [name for name in shapes if name not in named]
    if protect.sensitive > len(free):
        raise ConfigError(
            f"assign.protect.sensitive: got {protect.sensitive}; allowed: at most {len(free)}, the model's layers that "
            "assign.protect.layers does not name"
        )
    found = sensitivities(totals, {name: math.prod(shape) for name, shape in shapes.items()})
    chosen = set(sorted(free, key=lambda name: -found[name])[: protect.sensitive])
    return {name: protect.sensitive_bits for name in shapes if name in chosen}


def matching_layers(key: str, entry: str, layers: Sequence[str], roles: Mapping[str, str]) -> list[str]:
    """Return the layers that ``entry``, a role or a pattern, names; none raises ``ConfigError`` about ``key``."""
    found = [roles[entry]] if entry in ROLES and entry in roles else [n for n in layers if fnmatchcase(n, entry)]
    if not found:
        by_lower = {name.lower(): name for name in layers}
        near = difflib.get_close_matches(entry.lower(), by_lower, n=3, cutoff=0.3)
        close = [by_lower[name] for name in near] or list(layers[:3])
        raise ConfigError(
            f"{key}: got {entry!r}, which matches no layer; "
            f"allowed: {' | '.join(ROLES)} | a pattern of layer names (close: {', '.join(close)})"
        )
    return found
