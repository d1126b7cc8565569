"""Layers held at a given width whatever the allocator would choose: by name pattern or by role."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

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
