"""Unpack a tar or zip archive that nobody has vouched for: whole or not at all, and never outside its folder.

Written are plain files and folders only. Refused, with the member's name, are absolute paths, drive letters, ``..``,
links of any kind (a link can point out of the folder, and data need none), devices and other special files, names that
stand twice, and archives that grow beyond a stated bound. Sizes are counted while writing; headers are not believed.
Owners, permissions and times of the archive are not taken over: the result depends on the contents alone.
"""

from __future__ import annotations

import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tqdm import tqdm

from fairquant import artifacts
from fairquant.errors import DataError

GIB = 2**30
GROWTH = 100
"""An archive may grow by this factor, and to 1 GiB in any case."""
MAX_MEMBERS = 5_000_000

_BLOCK = 1 << 20
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    struct.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
"""What the readers of the standard library raise for files that are damaged, encrypted or no archive."""


class BadArchive(DataError):
    """The archive is damaged, no archive at all, refused, or without what is wanted; another copy may be good."""


@dataclass(frozen=True)
class _Entry:
    """One member: its name, what it is ("file", "directory" or, in words, what is refused), and its content."""

    name: str
    kind: str
    size: int
    content: IO[bytes] | None = None


@dataclass
class _Writer:
    """Writes entries below ``root`` and keeps count of them."""

    archive: Path
    root: Path
    member: str | None
    limit: int
    written: int = 0
    count: int = 0
    skipped: set[str] = field(default_factory=set)

    def add(self, entry: _Entry) -> None:
        """Check and write one entry; entries outside ``member`` are checked only."""
        parts = self._parts(entry)
        self.count += 1
        if self.count > MAX_MEMBERS or self.written + entry.size > self.limit:
            self._refuse_growth()
        if self.member is not None and (parts[:1] != [self.member] or parts == [self.member] and entry.kind == "file"):
            self.skipped.update(parts[:1])
            return
        path = self.root.joinpath(*parts[self.member is not None :])
        if entry.kind == "directory":
            path.mkdir(parents=True, exist_ok=True)
        elif entry.content is not None:
            self._write(path, entry, entry.content)

    def _parts(self, entry: _Entry) -> list[str]:
        """Return the path's parts; ``DataError`` for whatever does not stay below the folder."""
        parts = [part for part in re.split(r"[/\\]", entry.name) if part not in ("", ".")]
        reason = None if entry.kind in ("file", "directory") else entry.kind
        if entry.name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", entry.name):
            reason = "an absolute path"
        elif ".." in parts:
            reason = "a path with '..'"
        elif "\0" in entry.name or (not parts and entry.kind == "file"):
            reason = "no file name"
        if reason is not None:
            raise BadArchive(
                f"{self.archive}: refused, the member {entry.name!r} is {reason}; "
                "allowed: files and folders inside the archive's own folder"
            )
        return parts

    def _write(self, path: Path, entry: _Entry, content: IO[bytes]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("xb") as file:
                size = 0
                while block := content.read(_BLOCK):
                    size += len(block)
                    if self.written + size > self.limit:
                        self._refuse_growth()
                    file.write(block)
        except FileExistsError:
            raise BadArchive(
                f"{self.archive}: refused, the member {entry.name!r} stands there twice; allowed: each name once"
            ) from None
        if size != entry.size:
            raise EOFError(f"{entry.name!r} has {size} of {entry.size} bytes")
        self.written += size

    def _refuse_growth(self) -> None:
        raise BadArchive(
            f"{self.archive}: refused, it unpacks to more than {self.limit:,} bytes or {MAX_MEMBERS:,} members; "
            f"allowed: {GROWTH} times the archive's own size, at least 1 GiB"
        )


def unpack(archive: Path, target: Path, *, member: str | None = None, limit: int | None = None) -> None:
    """Unpack ``archive`` so that ``target`` is its content; ``target`` appears whole or not at all.

    Args:
        archive: a zip, tar, tar.gz, tar.bz2 or tar.xz file, told apart by content.
        target: the folder to make; where it exists it must be empty.
        member: the archive's top-level folder whose content is wanted; ``None``: everything.
        limit: refuse archives that unpack to more bytes; ``None``: 100 times the archive's size, at least 1 GiB.

    Raises:
        DataError: the archive is damaged, truncated, no archive, refused, or the disk is full. One line.
    """
    target = target.resolve()
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise DataError(f"{target}: exists already; allowed: an empty or absent folder for {archive.name}")
        bound = max(GIB, GROWTH * archive.stat().st_size) if limit is None else limit
        with artifacts.atomic_path(target) as partial:
            partial.mkdir()
            writer = _Writer(archive, partial, member, bound)
            with _entries(archive) as entries:
                for entry in tqdm(entries, desc=f"unpack {archive.name}", unit="file", disable=None):
                    writer.add(entry)
            _check_found(writer)
    except _DAMAGED as error:
        raise BadArchive(f"{archive}: not a whole zip or tar archive ({_one_line(error)})") from None
    except OSError as error:  # gzip and bz2 report damage as an OSError without a number, the disk with one
        if error.errno is None:
            raise BadArchive(f"{archive}: not a whole zip or tar archive ({_one_line(error)})") from None
        raise DataError(f"{archive}: not unpacked into {target} ({error.strerror})") from None


def _check_found(writer: _Writer) -> None:
    if not any(writer.root.iterdir()):
        found = ", ".join(sorted(writer.skipped)[:5]) or "nothing"
        wanted = f"the folder {writer.member!r}" if writer.member else "at least one file"
        raise BadArchive(f"{writer.archive}: got an archive that holds {found}; allowed: one that holds {wanted}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _entries(archive: Path) -> Iterator[Iterator[_Entry]]:
    """Yield the members in the archive's order, each to be read before the next."""
    with archive.open("rb") as file:
        zipped = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    if zipped:
        with zipfile.ZipFile(archive) as bundle:
            yield _zip_entries(bundle)
    else:
        with tarfile.open(archive, "r:*") as tape:
            yield _tar_entries(tape)


def _zip_entries(bundle: zipfile.ZipFile) -> Iterator[_Entry]:
    for info in bundle.infolist():
        mode = stat.S_IFMT(info.external_attr >> 16)
        if mode == stat.S_IFLNK:
            yield _Entry(info.orig_filename, "a link", 0)
        elif info.is_dir():
            yield _Entry(info.orig_filename, "directory", 0)
        elif mode in (0, stat.S_IFREG):
            with bundle.open(info) as content:
                yield _Entry(info.orig_filename, "file", info.file_size, content)
        else:
            yield _Entry(info.orig_filename, "a device or another special file", 0)


def _tar_entries(tape: tarfile.TarFile) -> Iterator[_Entry]:
    while (info := tape.next()) is not None:
        if info.isdir():
            yield _Entry(info.name, "directory", 0)
        elif info.isreg():
            yield _Entry(info.name, "file", info.size, tape.extractfile(info))
        else:
            yield _Entry(info.name, "a link" if info.issym() or info.islnk() else "a device or another special file", 0)
        tape.members.clear()  # type: ignore[attr-defined]  # it would grow with the archive
    _check_end(tape)


def _check_end(tape: tarfile.TarFile) -> None:
    """Read to the end: tarfile takes a cut or damaged header for the end, and checksums stand after the last member."""
    file = tape.fileobj
    if file is None:
        raise EOFError("closed before its end")
    file.seek(tape.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise EOFError("it ends without the mark of its end")
    while file.read(_BLOCK):
        pass
