"""Output that is there whole or not at all: written beside its place under a hidden name, synced, then renamed."""

from __future__ import annotations

import io
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from ..codec.errors import FileAccessError
from .access import access_error, naming_os_errors

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_unfinished: set[Path] = set()


@contextmanager
def atomic_writer(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[BinaryIO]:
    """A binary file object (seekable, readable) that becomes `path` when the context ends without an exception.

    On any exception, KeyboardInterrupt included, what was written is removed and a file that was at `path` is untouched.
    If `path` is a link, the file that it points to is replaced. Permissions follow the umask.

    Raises FileAccessError: the target exists and `overwrite` is false, it is a folder or a device, there is no such
    folder, no permission, disk full.
    """
    target = Path(os.path.realpath(path))
    _check_target(target, path, overwrite)
    temporary = _hidden_sibling(target)
    raw: _Output | None = None
    _unfinished.add(temporary)
    try:
        with naming_os_errors(path, "write"):
            raw = _Output(temporary, os.fspath(path))
        stream = io.BufferedRandom(raw, buffer_size=1 << 20)
        yield cast(BinaryIO, stream)
        with naming_os_errors(path, "write"):
            if not stream.closed:
                stream.flush()
                os.fsync(raw.fileno())
                stream.close()
            _check_target(target, path, overwrite)  # somebody else may have been quicker
            os.replace(temporary, target)
        _sync_folder(target.parent)
    except BaseException:
        if raw is not None:
            with suppress(OSError):
                raw.close()  # not the buffered stream: it would try to write the rest
        with suppress(OSError):
            temporary.unlink()
        raise
    finally:
        _unfinished.discard(temporary)


@contextmanager
def atomic_folder(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """A new empty folder beside `path` that becomes `path` when the context ends without an exception.

    A folder that already has files needs `overwrite`: then the new files replace those of the same name one by one, each
    atomically, and all other files stay; `*.json` goes last, so that an index never names a shard that is not there yet.
    On any exception what was written is removed; `path` is untouched.

    Raises FileAccessError as `atomic_writer` does.
    """
    target = Path(os.path.realpath(path))
    _check_folder(target, path, overwrite)
    temporary = _hidden_sibling(target)
    _unfinished.add(temporary)
    try:
        with naming_os_errors(path, "write"):
            temporary.mkdir()
        yield temporary
        with naming_os_errors(path, "write"):
            _check_folder(target, path, overwrite)
            if target.exists() and any(target.iterdir()):
                _merge(temporary, target)
            else:
                if target.exists():
                    target.rmdir()  # a rename onto a folder is refused on Windows
                os.replace(temporary, target)
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _unfinished.discard(temporary)


def discard_unfinished() -> None:
    """Remove what the writers of this process have begun: for a process that is about to end without unwinding."""
    for path in tuple(_unfinished):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


class _Output(io.FileIO):
    """A file whose failures name the output, so that they cannot be taken for failures to read the input."""

    def __init__(self, temporary: Path, shown: str) -> None:
        self.shown = shown
        super().__init__(temporary, "x+b", opener=_create)

    def write(self, data: ReadableBuffer, /) -> int:
        return self._naming(lambda: super(_Output, self).write(data))

    def truncate(self, size: int | None = None, /) -> int:
        return self._naming(lambda: super(_Output, self).truncate(size))

    def _naming(self, call: Callable[[], int]) -> int:
        try:
            return call()
        except OSError as error:
            raise access_error(error, self.shown, "write") from error


def _create(path: str, flags: int) -> int:
    return os.open(path, flags, 0o666)


def _hidden_sibling(target: Path) -> Path:
    # The name is cut so that the longest name a file system allows (255 bytes, 4 to a character) has a sibling, too.
    return target.with_name(f".{target.name[:48]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _check_target(target: Path, shown: str | os.PathLike[str], overwrite: bool) -> None:
    with naming_os_errors(shown, "write"):
        try:
            mode = target.stat().st_mode
        except FileNotFoundError:
            if not target.parent.is_dir():
                raise FileAccessError(f"cannot write {os.fspath(shown)}: there is no folder {target.parent}") from None
            return
    if stat.S_ISDIR(mode):
        raise FileAccessError(f"cannot write {os.fspath(shown)}: it is a folder")
    if not stat.S_ISREG(mode):
        raise FileAccessError(f"cannot write {os.fspath(shown)}: it is not a regular file")
    if not overwrite:
        raise FileAccessError(f"{os.fspath(shown)} already exists; -f/--force overwrites it")


def _check_folder(target: Path, shown: str | os.PathLike[str], overwrite: bool) -> None:
    with naming_os_errors(shown, "write"):
        if not target.exists():
            if not target.parent.is_dir():
                raise FileAccessError(f"cannot write {os.fspath(shown)}: there is no folder {target.parent}")
        elif not target.is_dir():
            raise FileAccessError(f"cannot write {os.fspath(shown)}: it is a file, and the output is a folder")
        elif not overwrite and any(target.iterdir()):
            raise FileAccessError(
                f"{os.fspath(shown)} is a folder with files; -f/--force replaces those of the same name"
            )


def _merge(source: Path, target: Path) -> None:
    files = [path for path in source.rglob("*") if not path.is_dir()]
    for path in sorted(files, key=lambda path: (path.suffix == ".json", path)):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
        _sync_folder(place.parent)


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself survive a power cut, where the system has a way to do so."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
