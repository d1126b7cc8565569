"""A stage in several processes of this machine: the command starts itself again, once per process, and watches.

The process that the user (or DVC) started does no work itself. It ends when all have ended, with their exit code; when
one fails, the others are ended too. Whatever ends it ends them: they hold a pipe whose other end dies with it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from queue import Empty, SimpleQueue
from time import monotonic

from fairquant.parallel.world import LIFELINE

GRACE = 5.0
"""Seconds the other processes are given to end by themselves after one has failed."""
LOST = 75
"""Exit code of a process that ended because another one was suddenly gone (EX_TEMPFAIL)."""


def supervise(count: int) -> int:
    """Run this process's own command in ``count`` processes; return the exit code for all of them."""
    reading, writing = os.pipe()
    children = []
    try:
        for environ in environments(count, os.environ):
            command = [sys.executable, *sys.orig_argv[1:]]
            environ[LIFELINE] = str(reading)
            children.append(subprocess.Popen(command, env=environ, pass_fds=(reading,)))
        return _outcome(_watch(children), count)
    except KeyboardInterrupt:
        return 130
    finally:
        os.close(writing)
        for child in children:
            child.kill()
        for child in children:
            child.wait()
        os.close(reading)


def environments(count: int, environ: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the environment of each of ``count`` processes that meet on this machine.

    Cores are divided between them, unless ``OMP_NUM_THREADS`` says otherwise.
    """
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "NODE_RANK": "0",
    }
    loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
    usual = {"OMP_NUM_THREADS": str(max(1, cores() // count))}
    if loopback is not None:  # a machine whose name does not resolve still talks to itself
        usual |= {"GLOO_SOCKET_IFNAME": loopback}
    return [{**usual, **environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _watch(children: list[subprocess.Popen[bytes]]) -> dict[int, int]:
    """Return the exit codes of those that ended by themselves, in the order in which they did."""
    ended: SimpleQueue[tuple[int, int]] = SimpleQueue()
    for rank, child in enumerate(children):
        threading.Thread(target=lambda r, c: ended.put((r, c.wait())), args=(rank, child), daemon=True).start()
    codes: dict[int, int] = {}
    deadline: float | None = None
    while len(codes) < len(children):
        try:
            rank, code = ended.get(timeout=None if deadline is None else max(0.0, deadline - monotonic()))
        except Empty:
            break
        codes[rank] = code
        if code != 0 and deadline is None:
            deadline = monotonic() + GRACE
    return codes


def _outcome(codes: Mapping[int, int], count: int) -> int:
    """Turn exit codes into one, and say what no process could say itself."""
    for rank, code in codes.items():
        if code < 0:
            hint = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
            _say(f"process {rank + 1} of {count} was killed by {signal.Signals(-code).name}{hint}")
            return 128 - code
    failures = [code for code in codes.values() if code != 0]
    if failures and set(failures) == {LOST}:
        _say(f"the {count} processes lost contact with one another")
    return next((code for code in failures if code != LOST), failures[0] if failures else 0)


def _say(text: str) -> None:
    print(f"error: {text}", file=sys.stderr, flush=True)
