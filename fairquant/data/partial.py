"""An unfinished download beside its target: what has arrived, and what tells whether the server still has the same.

``.<name>.partial`` holds the bytes, ``.<name>.note.partial`` the address, the size and the validator (a strong ETag, or
else the date of the last change). Bytes of another address, or without a validator or a checksum to tell whether they
still belong to the file, are not continued. One process writes at a time.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import IO, Any

from fairquant.data.web import Final


class Partial:
    """The unfinished file, open for appending; made by ``open_partial``."""

    def __init__(self, path: Path, file: IO[bytes], url: str) -> None:
        """Go on with what is in ``file`` if it came from ``url``."""
        self.path = path
        self.size = file.tell()
        self._file = file
        self._url = url
        self._note = path.with_name(path.name.removesuffix(".partial") + ".note.partial")
        note = _read(self._note)
        self.validator = str(note.get("validator", ""))
        self.total: int | None = note.get("total")
        if self.size and note.get("url") != url:
            self.restart()

    def range_headers(self) -> dict[str, str]:
        """Return the headers that ask for the rest, if there is something to continue."""
        if not self.size:
            return {}
        headers = {"Range": f"bytes={self.size}-"}
        return {**headers, "If-Range": self.validator} if self.validator else headers

    def remember(self, headers: Message, total: int | None) -> None:
        """Keep the validator of what is being fetched, and its size where it is told."""
        etag = headers.get("ETag", "")
        self.validator = headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag
        self.total = total
        note = {"url": self._url, "validator": self.validator, "total": total}
        self._note.write_text(json.dumps(note), encoding="utf-8")

    def append(self, block: bytes) -> None:
        """Write the next bytes through to the file."""
        self._file.write(block)
        self._file.flush()
        self.size += len(block)

    def restart(self) -> None:
        """Throw away what has arrived."""
        self._file.truncate(0)
        self.size, self.validator, self.total = 0, "", None

    def finish(self, target: Path) -> None:
        """Sync the file and rename it to ``target``."""
        os.fsync(self._file.fileno())
        os.replace(self.path, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._note.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove an empty file and its note."""
        if self.size == 0 and self.path.is_file():
            self.path.unlink()
            self._note.unlink(missing_ok=True)


@contextmanager
def open_partial(target: Path, url: str) -> Iterator[Partial]:
    """Yield the unfinished file of ``target``, locked; ``Final`` where another process is fetching it."""
    path = target.with_name(f".{target.name}.partial")
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Final(f"another process is writing {path}") from None
        partial = Partial(path, file, url)
        try:
            yield partial
        finally:
            partial.clear()


def _read(note: Path) -> dict[str, Any]:
    """Return the note; one that is absent or broken tells nothing, and the download starts over."""
    try:
        value = json.loads(note.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
