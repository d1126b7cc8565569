"""hawq (being written)."""
from fairquant.config.base import Section, Int, number


class Options(Section):
    """Settings."""

    samples: Int = number(2, ge=1)


def score(gradient, weight):
    """Not there yet."""
    raise NotImplementedError
