"""Errors a user can cause. Each is one line: what (key, file), the value received, what is allowed.

``explain`` finds such a line for what the machine refuses: a full disk, a file that may not be written, no memory.
"""

from __future__ import annotations

import errno
import os
import re


class UserError(Exception):
    """A mistake the user can mend; stages print it as one line on stderr and exit with code 2."""


class ConfigError(UserError):
    """params.yaml holds an unknown key, a wrong type, a value out of range or an impossible combination."""


class DataError(UserError):
    """The data set on disk is not what its loader expects."""


class ArtifactError(UserError):
    """A file handed from stage to stage is missing, truncated or not what its name says."""


_ADVICE = {
    errno.ENOSPC: "free some and run dvc repro again",
    errno.EDQUOT: "free some and run dvc repro again",
    errno.EFBIG: "allow larger files (ulimit -f, the file system) and run dvc repro again",
    errno.EACCES: "allow this user to read and write it, or work in a folder of your own",
    errno.EPERM: "allow this user to read and write it, or work in a folder of your own",
    errno.EROFS: "work in a folder that can be written",
    errno.ENOTDIR: "move the file away that lies where a folder belongs",
    errno.EEXIST: "move the file away that lies where a folder belongs",
    errno.EISDIR: "move the folder away that lies where a file belongs",
    errno.ENAMETOOLONG: "use shorter names, or a folder nearer to the root",
    errno.EMFILE: "allow more (ulimit -n), or lower workers",
    errno.ENFILE: "close other programs and run dvc repro again",
    errno.EIO: "look after the disk (or its network) and run dvc repro again",
    errno.ESTALE: "look after the disk (or its network) and run dvc repro again",
    errno.EPIPE: "whoever read this output has ended",
}
"""What to do about the errors of the operating system that are no bug of this program."""

_NO_MEMORY = "out of memory{}; lower batch_size (of the stage's section) or workers, or close other programs"
_TORCH_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|Cannot allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED"
)
_AMOUNT = re.compile(r"(?:Tried to allocate|tried to allocate|Unable to allocate) ([\d.]+ ?(?:[KMGT]i?B|bytes))")


def explain(error: BaseException) -> str | None:
    """Return one line about an error the machine caused, or None where it may be a bug and deserves its traceback.

    >>> explain(OSError(28, "No space left on device", "models/bits.safetensors"))
    'models/bits.safetensors: No space left on device; free some and run dvc repro again'
    >>> explain(MemoryError())
    "out of memory; lower batch_size (of the stage's section) or workers, or close other programs"
    >>> explain(KeyError("layer")) is None
    True
    """
    if _is_out_of_memory(error):
        amount = _AMOUNT.search(str(error))
        return _NO_MEMORY.format(f" (asked for {amount[1]})" if amount else "")
    if isinstance(error, OSError) and error.errno in _ADVICE:
        reason = error.strerror or os.strerror(error.errno)
        where = f"{os.fsdecode(error.filename)}: " if error.filename not in (None, b"", "") else ""
        return f"{where}{reason}; {_ADVICE[error.errno]}"
    return None


def one_line(error: BaseException) -> str | None:
    r"""Return what to tell about a user's mistake or what the machine refused, or None where it may be a bug.

    >>> one_line(DataError("labels.csv: not found;\nexpected a csv"))
    'labels.csv: not found; expected a csv'
    """
    line = str(error) if isinstance(error, UserError) else explain(error)
    return None if line is None else " ".join(line.split())


def _is_out_of_memory(error: BaseException) -> bool:
    """Tell without importing torch, whose errors of this kind are plain RuntimeErrors on most devices."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and _TORCH_NO_MEMORY.search(str(error)) is not None
