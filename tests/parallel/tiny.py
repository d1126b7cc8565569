"""A stage that does what the environment tells it: ``python -m tests.parallel.tiny`` in a folder of its own.

``TINY`` says what happens after the processes have added up their numbers: ``fine``, or what a rank then does
(``mistake:1``, ``bug:0``, ``kill:1``, ``interrupt:0``), or all of them (``mistake``, ``bug``, ``differ``, ``hang``).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import warnings

from fairquant import stage
from fairquant.config import Config
from fairquant.errors import DataError
from fairquant.parallel.launch import start


def main(config: Config) -> None:
    """Add up, speak, and do what ``TINY`` says."""
    import torch
    from tqdm import tqdm

    from fairquant.parallel import collectives

    me = collectives.rank()
    number = torch.tensor([10.0**me])
    collectives.add_up([number])
    logging.info("%d processes, sum %d", collectives.world_size(), number)
    warnings.warn("a warning", stacklevel=1)
    for _ in tqdm(range(2), desc="bar", disable=None):
        pass
    with open(f"process-{me}", "w") as file:
        print(os.getpid(), torch.get_num_threads(), sys.stderr.isatty(), file=file)
    what, _, who = os.environ["TINY"].partition(":")
    if not who or int(who) == me:
        act(what, me)
    collectives.add_up([number])


def act(what: str, me: int) -> None:
    """Do one thing."""
    match what:
        case "mistake":
            raise DataError("image 7: not an image;\n allowed: jpeg")
        case "differ":
            raise DataError(f"image {me}: not an image; allowed: jpeg")
        case "bug":
            raise ZeroDivisionError("a bug")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "interrupt":
            raise KeyboardInterrupt
        case "exit":
            raise SystemExit(5)
        case "hang":
            time.sleep(60)


if __name__ == "__main__":
    stage.run(main, reads=("seed", "parallel"), start=start)
