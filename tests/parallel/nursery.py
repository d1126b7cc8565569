"""Stages in processes that need not import torch: a process that has, forks them.

``python -m stages.X`` in two processes spends its seconds on imports. A nursery pays for them once; what it forks then
does what the command would do in a process of its own, and starts processes as the stage does, by forking.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines on stderr."""
        return self.err.splitlines()


class Nursery:
    """The process that forks, seen from a test."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        """Speak to ``server``."""
        self._server = server

    def begin(self, module: str, folder: Path, *, terminal: str | None = None, **environ: str) -> int:
        """Start ``python -m module`` in ``folder`` with these variables; return the process id."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        request = {"module": module, "folder": str(folder), "environ": kept | environ, "terminal": terminal}
        self._say(json.dumps(request))
        return int(self._hear())

    def end(self, folder: Path) -> Done:
        """Wait for what was begun in ``folder``."""
        code = int(self._hear())
        return Done(code, (folder / "stdout").read_text(), (folder / "stderr").read_text())

    def run(self, module: str, folder: Path, **environ: str) -> Done:
        """Begin and wait."""
        self.begin(module, folder, **environ)
        return self.end(folder)

    def _say(self, line: str) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(line + "\n")
        self._server.stdin.flush()

    def _hear(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline()


@contextmanager
def nursery(*modules: str) -> Iterator[Nursery]:
    """Return a nursery that has imported ``modules`` besides torch and Fabric."""
    command = [sys.executable, "-m", "tests.parallel.nursery", *modules]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        try:
            yield Nursery(server)
        finally:
            server.kill()


def alive(pid: int) -> bool:
    """Return whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: Sequence[int], seconds: float = 10.0) -> bool:
    """Return whether all these processes end within ``seconds``."""
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)


class _Forked:
    """What ``subprocess.Popen`` does, without a new interpreter."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], pass_fds: Sequence[int]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            for descriptor in set(range(3, 64)) - set(pass_fds):
                _close(descriptor)
            _become(command[2], env)
        self._code: int | None = None

    def wait(self) -> int:
        if self._code is None:
            try:
                self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            except ChildProcessError:  # the other thread that waits has it
                time.sleep(0.1)
                return self.wait()
        return self._code

    def kill(self) -> None:
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:
        return


def _become(module: str, environ: Mapping[str, str]) -> NoReturn:
    """Run ``module`` as the interpreter would, and end."""
    os.environ.clear()
    os.environ.update(environ)
    sys.argv, sys.orig_argv = [module], [sys.executable, "-m", module]
    code: Any = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _serve(modules: Sequence[str]) -> None:
    """Fork what is asked for on stdin, one after the other; tell process ids and exit codes."""
    import importlib

    from fairquant.parallel import supervise

    for name in ("fairquant.parallel.meeting", "fairquant.parallel.verdict", *modules):
        importlib.import_module(name)
    supervise.subprocess.Popen = _Forked  # type: ignore[misc, assignment]
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.chdir(request["folder"])
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open("stdout", flags, 0o600), 1)
            os.dup2(os.open(request["terminal"] or "stderr", flags, 0o600), 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            _become(request["module"], request["environ"])
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1:])
