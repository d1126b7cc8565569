"""What commands that measure many points share: how they speak, and what their exit codes mean."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from tqdm import tqdm

from fairquant.terminal import failed

Say = Callable[[str], None]
"""Prints one line on stderr, above a progress bar where there is one."""


def run(work: Callable[[Say], int]) -> int:
    """Return the exit code of ``work``: its own, 2 after a user's mistake (one line), 130 after Ctrl-C.

    ``work`` keeps every finished point in a csv, so that the same command continues.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        return work(lambda line: tqdm.write(line, file=sys.stderr))
    except Exception as error:
        return failed(error)
    except KeyboardInterrupt:
        print("stopped: finished points are in the csv, the same command continues", file=sys.stderr)
        return 130
