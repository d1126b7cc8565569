"""What commands share: how their output reaches a terminal, a pipe or a file, and one line for what went wrong."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO

from fairquant.errors import one_line


def any_text(stream: TextIO) -> TextIO:
    """Return ``stream``, which from now on writes what its encoding lacks with backslashes."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    return stream


def show(text: str) -> None:
    """Print ``text`` whatever the terminal's encoding; nobody reading on is no error, a full disk is an ``OSError``."""
    try:
        print(text, file=any_text(sys.stdout), flush=True)
    except BrokenPipeError:
        silence()
    except OSError:
        silence()
        raise


def silence() -> None:
    """Send standard output nowhere, so that the interpreter does not complain about it when it ends."""
    with suppress(OSError, ValueError):  # a stream without a number cannot fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def failed(error: Exception) -> int:
    """Print one line about ``error`` and return the exit code 2; an error that may be a bug is raised again."""
    line = one_line(error)
    if line is None:
        raise error
    print(f"error: {line}", file=any_text(sys.stderr))
    return 2
