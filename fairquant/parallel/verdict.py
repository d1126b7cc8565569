"""Who says what when processes fail: one of them, one thing.

The processes keep notes in the store at which they met. It lives in the first process, or in torchrun; when it is gone,
then so is the first process, and it has spoken, or its launcher does.
"""

from __future__ import annotations

import os
from datetime import timedelta
from time import monotonic, sleep

from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed import DistError

from fairquant.parallel.world import World

TOGETHER = 3.0
"""Seconds within which processes that make the same mistake make it."""


class Verdict:
    """The notes of one process's run."""

    def __init__(self, world: World) -> None:
        """Connect to the store; the process group exists."""
        self._world = world
        store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=10)
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives what it restarts
        self._notes = PrefixStore(f"fairquant/{attempt}", store)

    def mistake(self, text: str) -> str | None:
        """Note that this process ends with ``text``; return what it is to print: None where another one speaks.

        The text bears the process's name, unless all make the same mistake.
        """
        try:
            self._notes.set(f"text/{self._world.rank}", text)
            self._notes.add("failed", 1)
            self._await_others()
            same = self._same_everywhere(text)
        except DistError:
            return None
        if not self.first_to_say():  # last, for the store may go with the first process, which has nothing to say then
            return None
        return text if same else f"{self._world.name}: {text}"

    def known(self) -> bool:
        """Return whether another process has failed by itself, or the store is gone."""
        try:
            return self._notes.add("failed", 0) > 0
        except DistError:
            return True

    def first_to_say(self) -> bool:
        """Return whether no process has spoken, in which case this one is the one to speak."""
        try:
            return self._notes.add("said", 1) == 1
        except DistError:
            return False

    def _await_others(self) -> None:
        deadline = monotonic() + TOGETHER
        while self._notes.add("failed", 0) < self._world.size and monotonic() < deadline:
            sleep(0.05)

    def _same_everywhere(self, text: str) -> bool:
        if self._notes.add("failed", 0) < self._world.size:
            return False
        return all(self._notes.get(f"text/{rank}") == text.encode() for rank in range(self._world.size))
