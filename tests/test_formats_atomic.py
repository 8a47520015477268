"""Atomic output: the new file is there whole, or the old one is untouched and nothing else lies about."""

from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qzc.codec.errors import FileAccessError, QzcError
from qzc.formats import atomic
from qzc.formats.atomic import atomic_folder, atomic_writer

ROOT = Path(__file__).parent.parent
posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_writes_reads_and_seeks(tmp_path: Path) -> None:
    with atomic_writer(tmp_path / "a") as stream:
        stream.write(bytes(100))
        stream.write(b"tail")
        stream.seek(0)
        stream.write(b"head")
        stream.seek(100)
        assert stream.read() == b"tail"
        assert not (tmp_path / "a").exists()
    assert listing(tmp_path) == {"a": b"head" + bytes(96) + b"tail"}


def test_a_stream_that_was_closed_inside(tmp_path: Path) -> None:
    with atomic_writer(tmp_path / "a") as stream:
        stream.write(b"new")
        stream.close()
    assert listing(tmp_path) == {"a": b"new"}


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
@pytest.mark.parametrize("nbytes", [0, 10, 5_000_000])
def test_failure_in_mid_write(tmp_path: Path, failure: type[BaseException], nbytes: int) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(failure), atomic_writer(tmp_path / "a", overwrite=True) as stream:
        stream.write(bytes(nbytes))
        raise failure
    assert listing(tmp_path) == {"a": b"old"}


def test_existing_file_needs_overwrite(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with (
        pytest.raises(FileAccessError, match="a already exists; -f/--force overwrites it"),
        atomic_writer(tmp_path / "a"),
    ):
        pytest.fail("the body must not run")
    assert listing(tmp_path) == {"a": b"old"}
    with atomic_writer(tmp_path / "a", overwrite=True) as stream:
        stream.write(b"new")
    assert listing(tmp_path) == {"a": b"new"}


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match="already exists"), atomic_writer(tmp_path / "a") as stream:
        stream.write(b"new")
        (tmp_path / "a").write_bytes(b"other")
    assert listing(tmp_path) == {"a": b"other"}


def test_refused_targets(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, message in (
        (tmp_path, "it is a folder"),
        (tmp_path / "none" / "a", "there is no folder"),
        (tmp_path / "file" / "a", "a part of the path is a file"),
        (tmp_path / ("x" * 300), "[Nn]ame too long"),
    ):
        with pytest.raises(FileAccessError, match=message) as caught, atomic_writer(path, overwrite=True):
            pytest.fail("the body must not run")
        assert str(path) in str(caught.value)
    assert list(listing(tmp_path)) == ["file"]


@posix
def test_devices_and_pipes_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/null", "/dev/full", str(tmp_path / "pipe")):
        if os.path.exists(path):
            with pytest.raises(FileAccessError, match="not a regular file"), atomic_writer(path, overwrite=True):
                pytest.fail("the body must not run")


@posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(FileAccessError, match="permission denied"), atomic_writer(tmp_path / "a"):
            pytest.fail("the body must not run")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.EACCES, "permission denied"), (errno.EROFS, "read-only"), (errno.ENOSPC, "the disk is full")],
)
def test_refusal_to_create(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str) -> None:
    def refuse(path: str, flags: int) -> int:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(atomic, "_create", refuse)
    with pytest.raises(FileAccessError, match=message) as caught, atomic_writer(tmp_path / "a"):
        pytest.fail("the body must not run")
    assert str(caught.value).startswith(f"cannot write {tmp_path / 'a'}: ") and ".tmp" not in str(caught.value)


def write_beyond(stream: io.BufferedRandom) -> None:
    stream.write(bytes(5_000_000))


def write_and_flush(stream: io.BufferedRandom) -> None:
    stream.write(b"x")
    stream.flush()


def write_little(stream: io.BufferedRandom) -> None:
    stream.write(b"x")  # stays in the buffer: fails when the context ends


@pytest.mark.parametrize("body", [write_beyond, write_and_flush, write_little])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_disk_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, body: Callable[[io.BufferedRandom], None]
) -> None:
    def full(call: Callable[[], int]) -> int:
        raise OSError(number, os.strerror(number))

    (tmp_path / "a").write_bytes(b"old")
    naming = atomic._Output._naming
    monkeypatch.setattr(atomic._Output, "_naming", lambda self, call: naming(self, lambda: full(call)))
    with pytest.raises(FileAccessError, match="a: the disk") as caught, atomic_writer(tmp_path / "a", True) as stream:
        assert isinstance(stream, io.BufferedRandom)
        body(stream)
    assert caught.value.exit_code == 1
    assert listing(tmp_path) == {"a": b"old"}


@posix
@pytest.mark.parametrize("nbytes", [200_000, 5_000_000])
def test_real_size_limit(tmp_path: Path, nbytes: int) -> None:
    (tmp_path / "a").write_bytes(b"old")
    code = f"""
import resource, signal, sys
from qzc.codec.errors import FileAccessError
from qzc.formats.atomic import atomic_writer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with atomic_writer(sys.argv[1], overwrite=True) as stream:
        stream.write(bytes({nbytes}))
except FileAccessError as error:
    print(error)
"""
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "a")]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith(f"cannot write {tmp_path / 'a'}: the file grew beyond the size limit")
    assert done.stderr == ""
    assert listing(tmp_path) == {"a": b"old"}


def test_errors_of_the_body_are_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_writer(tmp_path / "a"):
        (tmp_path / "input").read_bytes()
    assert not isinstance(caught.value, QzcError)


@posix
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with atomic_writer(tmp_path / "a") as stream:
            stream.write(b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@posix
def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "b").write_bytes(b"old")
    (tmp_path / "a").symlink_to("blobs/b")
    with atomic_writer(tmp_path / "a", overwrite=True) as stream:
        stream.write(b"new")
    assert (tmp_path / "a").is_symlink() and listing(tmp_path / "blobs") == {"b": b"new"}


def test_two_writers_at_once(tmp_path: Path) -> None:
    with atomic_writer(tmp_path / "a", True) as first, atomic_writer(tmp_path / "a", True) as second:
        first.write(b"first")
        second.write(b"second")
    assert listing(tmp_path) == {"a": b"first"}  # the outer context ends last


def test_names_of_the_greatest_length(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)
    with atomic_writer(path) as stream:
        stream.write(b"x")
    assert path.read_bytes() == b"x"


def fill(folder: Path, text: str) -> None:
    (folder / "sub").mkdir()
    for name in ("a.qzc", "model.safetensors.index.json", "sub/c.json"):
        (folder / name).write_text(text)


NEW = {"a.qzc": b"new", "model.safetensors.index.json": b"new", "sub/c.json": b"new"}


def test_new_folder(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as folder:
        fill(folder, "new")
        assert not (tmp_path / "out").exists() and folder.parent == tmp_path
    assert listing(tmp_path / "out") == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_empty_folder_is_as_good_as_none(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out", overwrite) as folder:
        fill(folder, "new")
    assert listing(tmp_path) == {f"out/{name}": data for name, data in NEW.items()}


def test_folder_with_files(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.qzc").write_text("old")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileAccessError, match="-f/--force"), atomic_folder(out):
        pytest.fail("the body must not run")
    with atomic_folder(out, overwrite=True) as folder:
        fill(folder, "new")
        assert listing(out) == {"a.qzc": b"old", "notes.txt": b"mine"}
    assert listing(out) == {**NEW, "notes.txt": b"mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_json_is_replaced_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.qzc").write_text("old")
    replaced: list[str] = []
    replace = os.replace

    def record(source: Path, target: Path) -> None:
        replaced.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", record)
    with atomic_folder(out, overwrite=True) as folder:
        fill(folder, "new")
        (folder / "z.qzc").write_text("new")
    assert replaced == ["a.qzc", "z.qzc", "model.safetensors.index.json", "c.json"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [False, True])
def test_folder_after_a_failure(tmp_path: Path, failure: type[BaseException], exists: bool) -> None:
    out = tmp_path / "out"
    if exists:
        out.mkdir()
        (out / "a.qzc").write_text("old")
    before = listing(tmp_path)
    with pytest.raises(failure), atomic_folder(out, overwrite=True) as folder:
        fill(folder, "new")
        raise failure
    assert listing(tmp_path) == before and out.exists() == exists


def test_refused_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, message in ((tmp_path / "file", "it is a file"), (tmp_path / "none" / "out", "there is no folder")):
        with pytest.raises(FileAccessError, match=message), atomic_folder(path, overwrite=True):
            pytest.fail("the body must not run")
