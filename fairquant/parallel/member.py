"""One of several processes: it joins the others through Lightning Fabric, and leaves with one voice.

Only the first process speaks: logging, warnings and progress bars of the others are off. When something fails, one
process says so, once, and all of them end.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import TYPE_CHECKING, NoReturn, TextIO

from fairquant.errors import UserError, explain
from fairquant.parallel.supervise import LOST
from fairquant.parallel.world import LIFELINE, World

if TYPE_CHECKING:
    from fairquant.parallel.verdict import Verdict

SIGNS_OF_LOSS = (
    "connection closed by peer", "connection reset by peer", "connection refused", "broken pipe", "timed out waiting",
    "remote process exit", "collective operation timeout",
)  # fmt: skip
"""Parts of what collectives raise in a process when another one is gone."""


@contextmanager
def member(world: World, device: str) -> Iterator[None]:
    """Be one of the processes of ``world`` on ``device``: torch's default process group exists inside.

    On CUDA the current device is this process's own. Where the body fails in any of the processes, none returns.
    """
    _hold(os.environ)
    if world.rank > 0:
        _silence()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what c10d tells of host names it does not find
    from fairquant.parallel.meeting import meet, part
    from fairquant.parallel.verdict import Verdict

    meet(world, device)
    verdict = Verdict(world)
    try:
        yield
        part()
    except KeyboardInterrupt:
        _leave(130)
    except SystemExit as stop:
        _leave(stop.code if isinstance(stop.code, int) else int(stop.code is not None))
    except Exception as error:
        _fail(error, verdict, world)


def _hold(environ: os._Environ[str]) -> None:
    """End this process as soon as the stage that started it is gone, however it went."""
    pipe = environ.pop(LIFELINE, None)
    if pipe is None:
        return

    def wait() -> None:
        os.read(int(pipe), 1)
        os._exit(130)

    threading.Thread(target=wait, daemon=True, name="lifeline").start()


class _NoTerminal(TextIOWrapper):
    """A stream to which nothing draws progress bars."""

    def isatty(self) -> bool:
        return False


def _silence() -> None:
    """Leave speaking to the first process: what it says, every process would say."""
    logging.getLogger().setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    sys.stderr = _no_terminal(sys.stderr)


def _no_terminal(stream: TextIO) -> TextIO:
    return _NoTerminal(stream.buffer, encoding=stream.encoding, errors=stream.errors, write_through=True)


def _fail(error: Exception, verdict: Verdict, world: World) -> NoReturn:
    """End after a mistake, after a bug, or after what another process's end looks like from here."""
    line = str(error) if isinstance(error, UserError) else explain(error)
    if line is not None:
        _leave(2, verdict.mistake(" ".join(line.split())))
    if verdict.known():
        _leave(2)
    if _is_loss(error):
        # A stage that started its processes sees which was killed, and says so.
        watched = world.launcher == "stage"
        _leave(LOST, None if watched else verdict.mistake("lost contact with another process: killed, or cut off"))
    if verdict.first_to_say():
        sys.excepthook(type(error), error, error.__traceback__)
    _leave(1)


def _is_loss(error: Exception) -> bool:
    """Return whether a collective failed because a process at its other end is gone, in gloo's and nccl's words."""
    import torch.distributed as dist

    text = str(error).lower()
    return isinstance(error, dist.DistNetworkError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in SIGNS_OF_LOSS)
    )


def _leave(code: int, text: str | None = None) -> NoReturn:
    """End this process here: tidying up would wait for the others."""
    with suppress(OSError):  # nobody reads any more, or the disk under the log is full
        if text is not None:
            print(f"error: {text}", file=sys.stderr)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
