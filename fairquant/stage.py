"""What every stage does first and last: validate params.yaml, run, turn a user's mistake into one line and exit 2."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any, cast

from fairquant.config import Config, load_config
from fairquant.errors import UserError


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


def run(main: Callable[[Config], None], *, reads: tuple[str, ...], groups_known: bool = True) -> None:
    """Call ``main`` with the part of the validated configuration named in ``reads``.

    A ``UserError`` becomes one line on stderr and exit code 2. ``reads`` must equal the stage's ``params`` in
    dvc.yaml (a test compares them), so that a parameter that matters is always one DVC watches. ``groups_known`` is
    False for the stage that finds the groups: what an earlier run found does not bind it.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        config = load_config() if groups_known else load_config(meta=None)
        main(cast(Config, StageParams(config, reads)))
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
