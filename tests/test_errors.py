"""What the machine refuses, on one line; what may be a bug keeps its traceback."""

from __future__ import annotations

import errno
import os

import pytest

from fairquant.errors import explain

MEMORY = "; lower batch_size (of the stage's section) or workers, or close other programs"


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "No space left on device; free some and run dvc repro again"),
        (errno.EDQUOT, "Disk quota exceeded; free some and run dvc repro again"),
        (errno.EFBIG, "File too large; allow larger files (ulimit -f, the file system) and run dvc repro again"),
        (errno.EACCES, "Permission denied; allow this user to read and write it, or work in a folder of your own"),
        (errno.EROFS, "Read-only file system; work in a folder that can be written"),
        (errno.ENOTDIR, "Not a directory; move the file away that lies where a folder belongs"),
        (errno.EISDIR, "Is a directory; move the folder away that lies where a file belongs"),
        (errno.EMFILE, "Too many open files; allow more (ulimit -n), or lower workers"),
    ],
)
def test_errors_of_the_operating_system(number, advice):
    assert explain(OSError(number, os.strerror(number), "models/bits.safetensors")) == (
        f"models/bits.safetensors: {advice}"
    )
    assert explain(OSError(number, os.strerror(number))) == advice


@pytest.mark.parametrize(
    ("error", "amount"),
    [
        (MemoryError(), ""),
        (MemoryError("Unable to allocate 3.73 GiB for an array with shape (1000000000,)"), " (asked for 3.73 GiB)"),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ..."), " (asked for 20.00 MiB)"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
                         "you tried to allocate 4000000000 bytes. Error code 12 (Cannot allocate memory)"),
            " (asked for 4000000000 bytes)",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), ""),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ""),
    ],
)  # fmt: skip
def test_no_memory(error, amount):
    assert explain(error) == f"out of memory{amount}{MEMORY}"


@pytest.mark.parametrize(
    "error", [KeyError("layer"), RuntimeError("shapes differ"), FileNotFoundError(2, "gone", "x"), OSError("text")]
)
def test_what_may_be_a_bug_is_not_explained(error):
    assert explain(error) is None
