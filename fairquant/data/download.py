"""Fetch what a publisher offers under a direct link: resumable, checked, and under its final name only when whole.

A download is written to ``.<name>.partial`` beside its target. An interrupted one goes on where it stopped (RFC 9110:
``Range`` with ``If-Range``, so that a file that changed meanwhile is sent anew); a server that ignores ranges starts it
over. Size and checksum are verified before the rename. Connection losses, stalls and 5xx answers are tried again after
growing pauses; an attempt that got further than any before does not count.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from fairquant.data.archive import BadArchive, unpack
from fairquant.data.partial import Partial, open_partial
from fairquant.data.web import Final, NoSuchRange, Passing, content_range, open_address, reason_of
from fairquant.errors import DataError

FIRST_PAUSE = 1.0
"""Seconds before the second attempt; each further pause is twice as long."""
LONGEST_PAUSE = 60.0
"""Seconds; the pause a server asks for is kept up to this."""

_BLOCK = 1 << 18

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Link:
    """A file as its publisher offers it.

    Attributes:
        url: http or https address.
        sha256: published checksum, hexadecimal; ``None`` where the publisher gives none.
        md5: the same, for publishers that give an MD5.
        size: published number of bytes.
    """

    url: str
    sha256: str | None = None
    md5: str | None = None
    size: int | None = None

    @property
    def name(self) -> str:
        """The last part of the address.

        >>> Link("https://example.org/2019/images.zip?download=1").name
        'images.zip'
        """
        return urlsplit(self.url).path.rsplit("/", 1)[-1]

    @property
    def checked(self) -> bool:
        """Whether a checksum is published."""
        return self.sha256 is not None or self.md5 is not None


def fetch(
    link: Link,
    target: Path,
    *,
    layout: str,
    attempts: int = 3,
    timeout: float = 30.0,
    pause: Callable[[float], None] = time.sleep,
) -> Path:
    """Return ``target``, fetched from ``link`` unless it is there already and matches.

    Args:
        link: the address with what is known of the file. A present file is taken as it is where nothing is known.
        target: the file to write; its folder is made where it is absent.
        layout: the layout expected in the folder, in words; part of the error.
        attempts: how many in a row may fail without getting any further.
        timeout: seconds without a byte after which an attempt has failed.
        pause: called with the seconds to wait before the next attempt.

    Raises:
        DataError: one line with the address, the reason, the folder and ``layout``; nothing stands under ``target``
            that was not there before. What has arrived stays in ``.<name>.partial`` for the next call.
    """
    try:
        if target.is_file():
            wrong = mismatch(link, target)
            if wrong is None:
                return target
            log.warning("%s is there, but %s; fetching it anew", target, wrong)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_partial(target, link.url) as partial:
            if not (partial.validator or link.checked):
                partial.restart()
            _try(link, partial, attempts=attempts, timeout=timeout, pause=pause)
            partial.finish(target)
    except Final as error:
        raise _failure(link, target.parent, layout, str(error)) from None
    except OSError as error:
        raise _failure(link, target.parent, layout, f"disk: {error.strerror or error}") from None
    return target


def fetch_and_unpack(
    link: Link,
    folder: Path,
    *,
    layout: str,
    member: str | None = None,
    attempts: int = 3,
    timeout: float = 30.0,
    limit: int | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Path:
    """Fetch a tar or zip archive and unpack it; return the folder that holds its content.

    With ``member`` the archive's top-level folder of that name becomes ``folder``/``member``, and ``folder`` may hold
    other files; without it the whole content becomes ``folder``, which must be empty or absent. Either appears whole
    or not at all. The archive itself is removed afterwards (DVC hashes whatever lies in ``data.path``); one that lies
    there already under its published name is used, checked against ``link`` and left alone.

    Raises:
        DataError: it could not be fetched (as ``fetch``) or unpacked (as ``fairquant.data.archive.unpack``).
    """
    beside, target = (folder.parent, folder) if member is None else (folder, folder / member)
    given = beside / link.name
    if given.is_file():
        wrong = mismatch(link, given)
        if wrong is not None:
            raise _failure(link, beside, layout, f"{given} is there, but {wrong}")
        unpack(given, target, member=member, limit=limit)
        return target
    archive = beside / f".{link.name}.fetched.partial"  # DVC ignores *.partial
    fetch(link, archive, layout=layout, attempts=attempts, timeout=timeout, pause=pause)
    try:
        unpack(archive, target, member=member, limit=limit)
    except BadArchive as error:
        archive.unlink(missing_ok=True)
        raise _failure(link, beside, layout, str(error).removeprefix(f"{archive}: ")) from None
    archive.unlink(missing_ok=True)
    return target


def _failure(link: Link, folder: Path, layout: str, reason: str) -> DataError:
    reason = " ".join(reason.split())
    return DataError(f"{link.url}: not fetched ({reason}); put it into {folder} by hand; expected {layout}")


def _try(link: Link, partial: Partial, *, attempts: int, timeout: float, pause: Callable[[float], None]) -> None:
    """Call ``_attempt`` until it succeeds, fails for good, or fails ``attempts`` times without getting further."""
    furthest, failures = partial.size, 0
    while True:
        try:
            _attempt(link, partial, timeout)
            return
        except Passing as error:
            failures = 1 if partial.size > furthest else failures + 1
            furthest = max(furthest, partial.size)
            if failures >= attempts:
                raise Final(f"{error}; {attempts} attempts") from None
            wait = min(max(FIRST_PAUSE * 2 ** (failures - 1), error.wait), LONGEST_PAUSE)
            log.warning("%s: %s; trying again in %g s", link.url, error, wait)
            pause(wait)


def _attempt(link: Link, partial: Partial, timeout: float) -> None:
    """Fetch what is missing and verify the whole; a wrong file that was put together is fetched once more."""
    resumed = partial.size > 0
    if not (resumed and partial.size == link.size):
        _fetch_rest(link, partial, timeout)
    wrong = mismatch(link, partial.path)
    if wrong is not None:
        partial.restart()
        raise (Passing if resumed else Final)(wrong)


def _fetch_rest(link: Link, partial: Partial, timeout: float) -> None:
    try:
        response = open_address(link.url, partial.range_headers(), timeout=timeout)
    except NoSuchRange as error:
        if error.total == partial.total == partial.size > 0:
            return  # the last attempt ended between the last byte and the rename
        partial.restart()
        raise Passing("HTTP 416, the server has no such range; starting over") from None
    with response:
        _receive(link, partial, response, _begin(link, partial, response))


def _begin(link: Link, partial: Partial, response: HTTPResponse) -> int | None:
    """Judge the headers, place the file for writing, return the total number of bytes where it is told."""
    headers = response.headers
    encoding = headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise Final(f"got the content encoding {encoding!r}, which was not asked for")
    if headers.get_content_type() == "text/html" and not link.checked:
        raise Final("got an HTML page instead of the file, as for a login or an exceeded quota")
    if response.status == 206:
        start, total = content_range(headers)
        if start != partial.size:
            partial.restart()
            raise Passing("the server sent another range than asked for; starting over")
    else:
        partial.restart()
        length = headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
    if total is not None and link.size is not None and total != link.size:
        raise Final(f"got a file of {total} bytes; expected {link.size}")
    partial.remember(headers, total)
    free = shutil.disk_usage(partial.path.parent).free
    if total is not None and total - partial.size > free:
        raise Final(f"the disk has {free:,} bytes left and {total - partial.size:,} are missing")
    return total


def _receive(link: Link, partial: Partial, response: HTTPResponse, total: int | None) -> None:
    """Append the body; it must end exactly at ``total`` or at the published size, where either is known."""
    expected = total if total is not None else link.size
    bar = tqdm(total=expected, initial=partial.size, desc=link.name, unit="B", unit_scale=True, disable=None)
    with bar:
        while expected is None or partial.size < expected:
            missing = _BLOCK if expected is None else min(_BLOCK, expected - partial.size)
            try:
                block = response.read1(missing)
            except (HTTPException, OSError) as error:
                raise Passing(f"{reason_of(error)} after {partial.size} bytes") from None
            if not block:
                break
            partial.append(block)
            bar.update(len(block))
    if expected is not None and partial.size < expected:
        raise Passing(f"the connection ended after {partial.size} of {expected} bytes")


def mismatch(link: Link, path: Path) -> str | None:
    """Return in words how the file differs from what is published; ``None`` where it does not."""
    size = path.stat().st_size
    if link.size is not None and size != link.size:
        return f"got {size} bytes; expected {link.size}"
    for algorithm, expected in (("sha256", link.sha256), ("md5", link.md5)):
        if expected is not None:
            got = _digest(path, algorithm)
            if got != expected.lower():
                return f"got the {algorithm} {got}; expected {expected}"
    return None


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    bar = tqdm(total=path.stat().st_size, desc=f"{algorithm} {path.name}", unit="B", unit_scale=True, disable=None)
    with path.open("rb") as file, bar:
        while block := file.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
