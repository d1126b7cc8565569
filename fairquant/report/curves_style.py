"""How methods look in the plots of budget curves.

Methods of one family (the name up to the first "_") share a colour of Okabe and Ito's and differ by marker; variants of
one name have the same marker in every family, and a method whose name only adds a part to another's is drawn dashed and
hollow.
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
    """Return a style for each method; ``a``, ``a_x``, ``a_x_y``: family a, variant x, y is drawn dashed and hollow.

    >>> made = styles(["uniform", "uniform_mse", "levels_max", "levels_max_mse", "optimal_max"])
    >>> made["levels_max"].marker == made["optimal_max"].marker, made["levels_max_mse"].dashes
    (True, '--')
    """
    families = list(dict.fromkeys(name.split("_")[0] for name in methods))
    again = {name for name in methods if "_" in name and name.rsplit("_", 1)[0] in methods}
    variants = list(dict.fromkeys(_variant(name, again) for name in methods))
    return {
        name: Style(
            colour := COLOURS[families.index(name.split("_")[0]) % len(COLOURS)],
            MARKERS[variants.index(_variant(name, again)) % len(MARKERS)],
            "--" if name in again else "-",
            "white" if name in again else colour,
        )
        for name in methods
    }


def _variant(name: str, again: set[str]) -> str:
    """Return the part of a name that its marker stands for; a family without variants is one of its own."""
    base = name.rsplit("_", 1)[0] if name in again else name
    return base.split("_", 1)[1] if "_" in base else base


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
