"""Opening files, and saying in one line what the operating system refused."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from ..codec.errors import FileAccessError, QzcError

_CAN_RELEASE = hasattr(mmap.mmap, "madvise") and hasattr(mmap, "MADV_DONTNEED")
_CAN_READ_AHEAD = hasattr(mmap.mmap, "madvise") and hasattr(mmap, "MADV_WILLNEED")

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file grew beyond the size limit of the file system or of this process",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "no such file or folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
}


def open_input(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading. Raises FileAccessError, also for folders, pipes and devices."""
    with naming_os_errors(path, "read"):
        mode = os.stat(path).st_mode  # before it is opened: opening a pipe waits for its other end
        if stat.S_ISDIR(mode):
            raise FileAccessError(f"cannot read {os.fspath(path)}: it is a folder")
        if not stat.S_ISREG(mode):
            raise FileAccessError(f"cannot read {os.fspath(path)}: it is not a regular file")
        return open(path, "rb")


def release_pages(mapped: mmap.mmap, begin: int, end: int) -> None:
    """Give the memory behind bytes `begin .. end - 1` of a mapped file back; reading them again reads the file again.

    Pages that are shared with a neighbour stay, and on systems that cannot do this nothing happens.
    """
    first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if _CAN_RELEASE and first < last:
        with suppress(OSError):
            mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def read_ahead(mapped: mmap.mmap, begin: int, end: int) -> None:
    """Have bytes `begin .. end - 1` of a mapped file read in the background, on systems that can do this."""
    first = begin // mmap.PAGESIZE * mmap.PAGESIZE
    if _CAN_READ_AHEAD and first < end:
        with suppress(OSError):
            mapped.madvise(mmap.MADV_WILLNEED, first, end - first)


def access_error(error: OSError, path: str | os.PathLike[str], doing: str) -> FileAccessError:
    """The one-line error for a refusal of the operating system; `doing` is "read", "write" ..."""
    reason = _REASONS.get(error.errno or 0, error.strerror or type(error).__name__)
    return FileAccessError(f"cannot {doing} {os.fspath(path)}: {reason}")


@contextmanager
def naming_os_errors(path: str | os.PathLike[str], doing: str) -> Iterator[None]:
    """Within this context OSErrors become FileAccessErrors that name `path`; a QzcError passes as it is."""
    try:
        yield
    except QzcError:
        raise
    except OSError as error:
        raise access_error(error, path, doing) from error
