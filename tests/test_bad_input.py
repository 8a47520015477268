"""Bad input and bad luck, through the command: one clear line, the right exit code, and nothing damaged or left behind."""

import os
import resource
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import qzc
from qzc.cli.main import COMMANDS
from tests.command_line import Argument, Result, inside, ok, process, without_privilege
from tests.malformed import MALFORMED
from tests.malformed_qzc import MALFORMED_QZC, sound
from tests.shards import files_in, shard

ROOT = Path(__file__).parent.parent
BAD = ROOT / "fixtures" / "bad"
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="limits and permissions of POSIX")


@pytest.fixture(scope="module")
def packed(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qzc.pack(model_file, tmp_path_factory.mktemp("packed") / "model.qzc").output


# ---------------------------------------------------------------------------------------------------------------------
# Files that are broken


def test_bad_fixtures_are_what_the_script_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "fixtures" / "make_bad_qzc.py"), str(tmp_path)], check=True)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in BAD.glob("*.qzc")}


def test_the_file_that_is_broken_is_sound_before(tmp_path: Path) -> None:
    (tmp_path / "sound.qzc").write_bytes(sound())
    assert ok("verify", tmp_path / "sound.qzc").code == 0
    assert ok("unpack", tmp_path / "sound.qzc").code == 0


HARMLESS = ("flipped_gap", "gap_not_zero", "table_of_no_chunk")
"""Defects of what unpacking does not read."""


@pytest.mark.parametrize("name", MALFORMED_QZC)
def test_malformed_qzc(name: str, tmp_path: Path) -> None:
    case = MALFORMED_QZC[name]
    path = BAD / f"{name}.qzc"
    failed = inside("verify", path)
    assert failed.code == case.exit_code and case.message in failed.error
    assert str(path) in failed.error and len(failed.error) < 500
    if name == "format_other":
        return  # to all other commands it is a safetensors file with strange names
    # Every other command refuses it in the same way, or gives what does not depend on the defect.
    for arguments in (("unpack", path, "-o", tmp_path / "out"), ("ls", path), ("info", path), ("stats", path)):
        result = inside(*arguments)
        assert result.code in (0, case.exit_code)
        if result.code:
            assert result.raw == b"" and result.error
    if name not in HARMLESS:
        assert inside("unpack", path, "-f", "-o", tmp_path / "out").code == case.exit_code
        assert not files_in(tmp_path)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_safetensors(name: str, tmp_path: Path) -> None:
    path = BAD / f"{name}.safetensors"
    for arguments in (
        ("pack", path, "-o", tmp_path / "out"),
        ("ls", path),
        ("stats", path),
        ("pack", path, "--dry-run"),
    ):
        failed = inside(*arguments)
        assert failed.code == 3 and failed.raw == b""
        assert MALFORMED[name].message in failed.error and str(path) in failed.error
    assert not files_in(tmp_path)


def test_messages_name_each_defect() -> None:
    """No two defects of one kind of file may look the same to the user, file names aside."""
    messages = [inside("verify", BAD / f"{name}.qzc").stderr.replace(name, "") for name in MALFORMED_QZC]
    assert len(set(messages)) > 0.85 * len(messages)


READERS = [c for c in COMMANDS if c not in ("calibrate", "eval", "pareto")]  # these need what an extra brings


@pytest.mark.parametrize("command", [c for c in READERS if c != "pack"])
def test_truncation_anywhere(command: str, packed: Path, tmp_path: Path) -> None:
    data = packed.read_bytes()
    more: dict[str, list[Argument]] = {"cat": ["model.norm.weight"], "unpack": ["-o", tmp_path / "out"]}
    more["report"] = more["unpack"]
    for size in (0, 1, 7, 8, 9, 100, 5000, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.qzc").write_bytes(data[:size])
        failed = inside(command, tmp_path / "cut.qzc", *more.get(command, []))
        assert failed.code in (3, 4) and failed.error, size
    assert files_in(tmp_path) == {"cut.qzc"}


def test_a_flipped_bit_anywhere(packed: Path, tmp_path: Path) -> None:
    data = bytearray(packed.read_bytes())
    path = tmp_path / "flipped.qzc"
    rng = np.random.default_rng(0)
    for at, bit in zip(rng.integers(0, len(data), 60).tolist(), rng.integers(0, 8, 60).tolist(), strict=True):
        data[at] ^= 1 << bit
        path.write_bytes(data)
        failed = inside("verify", path)
        assert failed.code in (3, 4) and str(path) in failed.error
        data[at] ^= 1 << bit


def test_other_formats_are_named(tmp_path: Path) -> None:
    starts = {"PyTorch (zip)": b"PK\x03\x04", "PyTorch (pickle)": b"\x80\x02"}
    for what, start in starts.items():
        (tmp_path / "weights").write_bytes(start + bytes(100))
        failed = inside("pack", tmp_path / "weights")
        assert failed.code == 4 and f"this is a {what} file; convert it to safetensors first" in failed.error
    (tmp_path / "weights").write_bytes(b"GGUF" + bytes(100))
    failed = inside("pack", tmp_path / "weights")
    assert failed.code in (3, 4) and "GGUF" in failed.error
    (tmp_path / "weights").write_text("This is a text file that somebody took for weights.")
    for command in ("pack", "verify", "ls", "unpack"):
        failed = inside(command, tmp_path / "weights")
        assert failed.code == 3 and "not a safetensors file" in failed.error


def test_no_huge_allocation(tmp_path: Path) -> None:
    """Within a gigabyte of address space: claims of more are refused from the header."""
    claims = [name for name in MALFORMED_QZC if "huge" in name or "overflow" in name or "too_many" in name]
    claims_of_safetensors = [name for name in MALFORMED if "huge" in name or "above" in name or "overflow" in name]
    assert len(claims) >= 4 and len(claims_of_safetensors) >= 5
    tracemalloc.start()
    try:
        for name in claims:
            assert inside("verify", BAD / f"{name}.qzc").code == 3
        for name in claims_of_safetensors:
            assert inside("pack", BAD / f"{name}.safetensors", "-o", tmp_path / "out").code == 3
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------------------------------------------------------------
# Paths that lead nowhere


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "pytorch_model.bin").write_bytes(b"PK")
    for command in READERS:
        options: dict[str, list[Argument]] = {"cat": ["x"], "report": ["-o", tmp_path / "out.html"]}
        more = options.get(command, [])
        for path, code, message in (
            (tmp_path / "missing.safetensors", 1, "no such file or folder"),
            (tmp_path / "torch" / "pytorch_model.bin" / "x", 1, "a part of the path is a file, not a folder"),
            (tmp_path / "empty", 2, "the folder has no weights"),
            (tmp_path / "torch", 4, "pytorch_model.bin; convert it to safetensors first"),
            (Path("/dev/null"), 1, "it is not a regular file"),
        ):
            failed = inside(command, path, *more)
            assert (failed.code, message in failed.error, failed.raw) == (code, True, b""), (command, failed)
            assert str(path) in failed.error


@posix_only
def test_files_without_permission(packed: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(packed, tmp_path / "m.qzc"))
    path.chmod(0)
    failed = process("ls", path, preexec_fn=without_privilege())
    assert failed.code == 1 and failed.error == f"cannot read {path}: permission denied"


@posix_only
def test_a_folder_without_permission(model_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sealed"
    folder.mkdir()
    folder.chmod(0o555)
    failed = process("pack", model_file, "-o", folder / "m.qzc", preexec_fn=without_privilege())
    assert failed.code == 1 and failed.error == f"cannot write {folder / 'm.qzc'}: permission denied"
    folder.chmod(0o755)
    assert not files_in(tmp_path)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("folder", "it is a folder"),
        ("no/such/folder/m.qzc", "there is no folder"),
        ("file/m.qzc", "a part of the path is a file"),
        ("n" * 300, "File name too long"),
        ("/dev/null", "it is not a regular file"),
    ],
)
def test_outputs_that_cannot_be_written(output: str, message: str, model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("precious")
    failed = inside("pack", model_file, "-f", "-o", tmp_path / output)
    assert failed.code == 1 and message in failed.error
    assert files_in(tmp_path) == {"file"} and (tmp_path / "file").read_text() == "precious"


def test_a_folder_where_a_file_is(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    failed = inside("pack", model_folder, "-f", "-o", tmp_path / "out")
    assert failed.code == 1 and "it is a file, and the output is a folder" in failed.error
    assert (tmp_path / "out").read_text() == "precious"


def test_shards_that_are_missing_or_twice(model_folder: Path, tmp_path: Path) -> None:
    folder = shard(model_folder, tmp_path / "llama")
    second = folder / "model-00002-of-00002.safetensors"
    second.rename(tmp_path / "elsewhere")
    failed = inside("pack", folder)
    assert failed.code == 1 and "shard model-00002-of-00002.safetensors is missing" in failed.error
    shutil.copy(folder / "model-00001-of-00002.safetensors", second)
    failed = inside("pack", folder)
    assert failed.code == 3 and "is also in model-00001-of-00002.safetensors" in failed.error
    assert {path.name for path in tmp_path.iterdir()} == {"llama", "elsewhere"}


# ---------------------------------------------------------------------------------------------------------------------
# Bad luck


def file_size_limit(nbytes: int) -> Callable[[], None]:
    """For `preexec_fn`: what a full disk is to a program, where every file may have `nbytes` bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))


def runs_out_of_disk(*arguments: Argument, nbytes: int, env: dict[str, str | None] | None = None) -> Result:
    # Compiled kernels must come from the cache that this process has filled: their files are larger than the limit.
    return process(*arguments, preexec_fn=file_size_limit(nbytes), env=env)


@posix_only
@pytest.mark.parametrize("nbytes", [0, 1000, 100_000, 250_000])
def test_disk_full_in_mid_write(nbytes: int, model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.qzc"
    path.write_text("old")
    failed = runs_out_of_disk("pack", model_file, "-f", "-o", path, nbytes=nbytes)
    assert failed.code == 1 and failed.error.startswith(f"cannot write {path}: the file grew beyond the size limit")
    assert path.read_text() == "old" and files_in(tmp_path) == {"model.qzc"}


@posix_only
def test_disk_full_in_other_commands(packed: Path, model_folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("old")
    for arguments in (
        ("unpack", packed, "-f", "-o", old),
        ("cat", packed, "model.embed_tokens.weight", "-f", "-o", old),
        ("pack", model_folder, "-o", tmp_path / "folder"),
    ):
        failed = runs_out_of_disk(*arguments, nbytes=50_000)
        assert failed.code == 1 and "the file grew beyond the size limit" in failed.error
        assert files_in(tmp_path) == {"old"} and old.read_text() == "old"


@posix_only
def test_disk_full_on_the_way_to_stdout(packed: Path, tmp_path: Path) -> None:
    failed = runs_out_of_disk("unpack", packed, "-o", "-", nbytes=50_000, env={"TMPDIR": str(tmp_path)})
    assert failed.code == 1 and failed.raw == b"" and "the file grew beyond the size limit" in failed.error
    assert not files_in(tmp_path)


@posix_only
def test_out_of_memory(tmp_path: Path) -> None:
    """A valid file that needs more memory than there is."""
    weights = np.zeros((1, 1), np.float32)
    save_file({"w": weights}, tmp_path / "m.safetensors")
    size = 3 << 30
    path = tmp_path / "large.safetensors"
    header = b'{"w":{"dtype":"F32","shape":[1,%d],"data_offsets":[0,%d]}}' % (size // 4, size)
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)  # a hole on the disk

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

    failed = process("pack", path, preexec_fn=limit, env={"OPENBLAS_NUM_THREADS": "1"})
    assert failed.code == 1 and "memory" in failed.error.lower()
    assert files_in(tmp_path) == {"m.safetensors", "large.safetensors"}


def test_errors_nobody_has_thought_of(monkeypatch: pytest.MonkeyPatch, packed: Path, capsys: Any) -> None:
    def broken(path: Path) -> None:
        raise RuntimeError("two\nlines")

    from qzc.cli import listing
    from qzc.cli.main import run

    monkeypatch.setattr(listing, "list_files", broken)
    assert run(["ls", str(packed)]) == 1
    out, err = capsys.readouterr()
    message = "internal error, please report it (RuntimeError: two lines); QZC_DEBUG=1 shows where it happened"
    assert out == "" and err == f"qzc: {message}\n"
    monkeypatch.setitem(os.environ, "QZC_DEBUG", "1")
    with pytest.raises(RuntimeError):
        run(["ls", str(packed)])
