"""How methods look in the plots of budget curves.

Methods of one family (the name up to the first "_") share a colour of Okabe and Ito's and differ by marker; variants of
one name have the same marker in every family, and a method whose name only adds a part to another's differs from that
by its dashes and the face of its markers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#555555", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
ADDED = (("--", "white"), (":", "#cccccc"), ("-.", "black"))
"""Line and marker's face of methods that add a part to another's name."""
FULL_COLOUR = "#000000"
GRID = "#e5e5e5"
STATES = {False: "without fine-tuning", True: "fine-tuned equally"}


@dataclass(frozen=True)
class Style:
    """How a method is drawn everywhere."""

    colour: str
    marker: str
    dashes: str
    face: str


def styles(methods: Sequence[str]) -> dict[str, Style]:
    """Return a style for each method; ``a``, ``a_x``, ``a_x_y``: family a, variant x, and y changes how a_x is drawn.

    >>> made = styles(["uniform", "uniform_mse", "levels_max", "levels_max_mse", "levels_max_corrected", "optimal_max"])
    >>> made["levels_max"].marker == made["optimal_max"].marker
    True
    >>> made["levels_max"].dashes, made["levels_max_mse"].dashes, made["levels_max_corrected"].dashes
    ('-', '--', ':')
    """
    parts = {name: _parts(name, methods) for name in methods}
    families, variants, additions = (list(dict.fromkeys(part[i] for part in parts.values())) for i in range(3))
    plain = [addition for addition in additions if addition]
    found = {}
    for name, (family, variant, addition) in parts.items():
        colour = COLOURS[families.index(family) % len(COLOURS)]
        marker = MARKERS[variants.index(variant) % len(MARKERS)]
        dashes, face = ADDED[plain.index(addition) % len(ADDED)] if addition else ("-", colour)
        found[name] = Style(colour, marker, dashes, face)
    return found


def _parts(name: str, methods: Sequence[str]) -> tuple[str, str, str]:
    """Return family, variant and what is added to another method of that name; a lone family is its own variant."""
    base, _, last = name.rpartition("_")
    base, addition = (base, last) if base in methods else (name, "")
    family, _, variant = base.partition("_")
    return family, variant or family, addition


def three_digits(value: float) -> str:
    """Write a size with three digits.

    >>> three_digits(0.0123456), three_digits(11.17)
    ('0.0123', '11.2')
    """
    return f"{value:.3g}"


def legend_outside(figure: Figure, panels: Sequence[Axes]) -> None:
    """Put one legend outside, to the right, of every label any panel has."""
    found = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(found.values()), list(found), loc="outside right upper", frameon=False, fontsize=8)
