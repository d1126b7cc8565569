"""What every stage does first and last: validate params.yaml, run, turn a user's mistake into one line and exit 2."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, cast

from fairquant.config import Config, load_config
from fairquant.errors import one_line


class StageParams:
    """The part of the configuration a stage has declared; reading anything else is a bug that would go stale."""

    def __init__(self, config: Any, reads: tuple[str, ...], path: str = "") -> None:
        """Restrict ``config`` to the keys in ``reads``; ``section.key`` is one key of a section, which lies at path."""
        self._config = config
        self._reads = reads
        self._path = path
        self.options = getattr(config, "options", None)

    def __getattr__(self, name: str) -> Any:
        """Return a declared section or scalar; ``AttributeError`` names the declaration that is missing."""
        if name in self._reads:
            return getattr(self._config, name)
        inner = tuple(read.removeprefix(f"{name}.") for read in self._reads if read.startswith(f"{name}."))
        if inner:
            return StageParams(getattr(self._config, name), inner, f"{self._path}{name}.")
        declared = ", ".join(f"{self._path}{read}" for read in self._reads)
        raise AttributeError(f"the stage reads '{self._path}{name}' without declaring it; declared: {declared}")


def _open_streams() -> None:
    """Put /dev/null where stdout or stderr are closed: a file opened later would get their number, and their text."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


def run(
    main: Callable[[Config], None],
    *,
    reads: tuple[str, ...],
    groups_known: bool = True,
    start: Callable[[Config], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """Call ``main`` with the part of the validated configuration named in ``reads``.

    A ``UserError``, and what the machine refuses (``explain``: a full disk, no memory), become one line on stderr and
    exit code 2. ``reads`` must equal the stage's ``params`` in dvc.yaml (a test compares them), so that a parameter
    that matters is always one DVC watches. ``groups_known`` is False for the stage that finds the groups: what an
    earlier run found does not bind it. ``start`` returns the context of ``main``: ``fairquant.parallel.launch.start``
    for a stage that works in several processes.
    """
    _open_streams()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        config = load_config() if groups_known else load_config(meta=None)
        with start(config):
            main(cast(Config, StageParams(config, reads)))
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        with suppress(OSError):  # nobody reads any more, or the disk under the log is full
            if _speaks(os.environ):
                print(f"error: {line}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _speaks(environ: Mapping[str, str]) -> bool:
    """Return False in all but one of the processes that torchrun or srun started on a machine: they find the same.

    This holds until the processes have met (``start``); from then on they agree on what is said.
    """
    local_rank = {"WORLD_SIZE": "LOCAL_RANK", "SLURM_NTASKS": "SLURM_LOCALID"}
    return not any(environ.get(size, "1") != "1" and environ.get(rank, "0") != "0" for size, rank in local_rank.items())
