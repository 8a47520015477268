"""The command line and what it runs in: terminals, pipes, full devices, signals, places that nobody may write to."""

import os
import re
import selectors
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qzc
from tests.command_line import Argument, command, environment, ok, process, without_privilege
from tests.shards import files_in

DOWN = "model.layers.0.mlp.down_proj.weight"
NORM = "model.norm.weight"
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="signals and terminals of POSIX")


@pytest.fixture(scope="module")
def packed(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture packed with the default grid. Read only."""
    return qzc.pack(model_file, tmp_path_factory.mktemp("packed") / "model.qzc").output


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that takes some seconds to pack, most of it zeros on disk. Read only."""
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    rng = np.random.default_rng(0)
    save_file({f"{i:02}.weight": rng.normal(size=(2048, 2048)).astype(np.float32) for i in range(8)}, path)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Terminals


def on_a_terminal(
    *arguments: Argument, columns: int = 100, env: dict[str, str | None] | None = None
) -> tuple[str, str]:
    """What the command writes to stdout and to stderr where both are terminals of this width."""
    pty = pytest.importorskip("pty")
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    pairs = [pty.openpty() for _ in range(2)]
    for _, terminal in pairs:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, np.array([50, columns, 0, 0], np.uint16).tobytes())
    running = subprocess.Popen(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=pairs[0][1],
        stderr=pairs[1][1],
        env=environment(TERM="xterm-256color", **(env or {})),
    )
    texts = [b"", b""]
    for _, terminal in pairs:
        os.close(terminal)
    with selectors.DefaultSelector() as selector:
        for i, (main, _) in enumerate(pairs):
            selector.register(main, selectors.EVENT_READ, i)
        while selector.get_map():
            for key, _ in selector.select():
                try:
                    piece = os.read(key.fd, 1 << 16)
                except OSError:  # Linux: the other end is closed
                    piece = b""
                texts[key.data] += piece
                if not piece:
                    selector.unregister(key.fd)
                    os.close(key.fd)
    assert running.wait() == 0, texts[1].decode()
    return texts[0].decode(), texts[1].decode()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "")


@posix_only
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_tables_fit_and_names_are_whole(columns: int, packed: Path, model_file: Path) -> None:
    out, err = on_a_terminal("ls", packed, columns=columns)
    lines = plain(out).splitlines()
    assert max(map(len, lines)) <= columns and plain(err) == ""
    squeezed = "".join(line.split()[0] for line in lines if line.split())
    for name in load_file(model_file):
        assert name in squeezed  # folded perhaps, and never cut
    assert ("Too narrow for: " in out) is (columns < 100)


@posix_only
def test_progress_is_for_stderr_alone(packed: Path, model_file: Path, tmp_path: Path) -> None:
    out, err = on_a_terminal("pack", model_file, "-o", tmp_path / "m.qzc")
    assert out == "" and "packing" in plain(err) and "20 tensors" not in err
    assert plain(err).rstrip().splitlines()[-1].startswith(str(tmp_path)[:40])
    out, err = on_a_terminal("pack", model_file, "-f", "-q", "-o", tmp_path / "m.qzc")
    assert out == "" and err == ""


@posix_only
def test_no_color(packed: Path) -> None:
    colourful, _ = on_a_terminal("ls", packed)
    out, _ = on_a_terminal("ls", packed, env={"NO_COLOR": "1"})
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", out)
    assert plain(out) == plain(colourful)


@posix_only
def test_markup_in_names_is_text(tmp_path: Path) -> None:
    name = "[red]w[/red] :smile: [/]"
    save_file({name: np.zeros((64, 128), np.float32)}, tmp_path / "m.safetensors")
    _, err = on_a_terminal("pack", tmp_path / "m.safetensors", "-v")
    assert f"{name}  4-bit" in plain(err)
    out, _ = on_a_terminal("ls", tmp_path / "m.qzc")
    assert name in plain(out)


@posix_only
def test_binary_data_is_kept_off_terminals(packed: Path, model_file: Path) -> None:
    for arguments in (("cat", packed, NORM), ("pack", model_file, "-o", "-"), ("unpack", packed, "-o", "-")):
        with pytest.raises(AssertionError, match="binary data does not belong on a terminal"):
            on_a_terminal(*arguments)


# ---------------------------------------------------------------------------------------------------------------------
# Pipes and full devices


@posix_only
@pytest.mark.parametrize("arguments", [["ls"], ["ls", "--json"], ["stats"], ["info"], ["unpack", "-o", "-"]])
def test_a_reader_that_leaves_early(arguments: list[str], packed: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = process(arguments[0], packed, *arguments[1:], stdout=writing)
    os.close(writing)
    assert result.code == 141 and not [line for line in result.stderr.splitlines() if "error" in line.lower()]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", [["ls"], ["ls", "--json"], ["info"], ["cat", NORM], ["unpack", "-o", "-"]])
def test_a_full_device(arguments: list[str], packed: Path) -> None:
    with open("/dev/full", "wb") as full:
        result = process(arguments[0], packed, *arguments[1:], stdout=full)
    assert result.code == 1 and result.error == "cannot write to stdout: No space left on device"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_help_on_a_full_device() -> None:
    with open("/dev/full", "wb") as full:
        result = process("--help", stdout=full)
    assert result.code == 1 and "cannot write to stdout" in result.error


@posix_only
def test_closed_streams(packed: Path, tmp_path: Path) -> None:
    line = f"{' '.join(command())} {{}} {packed} {{}}"
    for arguments, redirections in {
        ("ls", ""): ">&-",
        ("verify", ""): "2>&-",
        ("verify", "-v"): ">&- 2>&- <&-",
        ("unpack", f"-f -o {tmp_path}/m.safetensors"): ">&- 2>&-",
    }.items():
        text = line.format(arguments[0], f"{arguments[1]} {redirections}")
        done = subprocess.run(["sh", "-c", text], env=environment(), capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), text


# ---------------------------------------------------------------------------------------------------------------------
# Signals


def begun(running: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait until output is being written."""
    for _ in range(1200):
        if any(path.name.startswith(".") and path.is_file() for path in folder.rglob(".*")):
            return
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    raise AssertionError("nothing was written within a minute")


@posix_only
@pytest.mark.parametrize(
    ("kind", "signals", "code", "word"),
    [
        ("file", [signal.SIGINT], 130, "interrupted"),
        ("file", [signal.SIGINT, signal.SIGINT, signal.SIGTERM], 130, "interrupted"),  # an impatient user
        ("file", [signal.SIGTERM], 143, "terminated"),
        ("file", [signal.SIGHUP], 129, "hung up"),
        ("folder", [signal.SIGINT], 130, "interrupted"),
        ("stdout", [signal.SIGINT], 130, "interrupted"),
    ],
)
def test_signals_leave_no_debris(
    kind: str, signals: list[signal.Signals], code: int, word: str, large: Path, tmp_path: Path
) -> None:
    source, work = (large.parent if kind == "folder" else large), tmp_path / "work"
    outputs: dict[str, Argument] = {"file": work / "old.qzc", "folder": work / "old", "stdout": "-"}
    work.mkdir()
    if kind == "file":
        (work / "old.qzc").write_text("old")
    elif kind == "folder":
        (work / "old").mkdir()
        (work / "old" / "old.qzc").write_text("old")
    before = files_in(work)
    watched = tmp_path if kind == "stdout" else work
    running = subprocess.Popen(
        command("pack", source, "-f", "-o", outputs[kind]),
        stdout=subprocess.PIPE if kind == "stdout" else None,
        stderr=subprocess.PIPE,
        env=environment(TMPDIR=str(tmp_path)),
    )
    begun(running, watched)
    time.sleep(0.2)
    for number in signals:
        running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == code, err
    assert err.decode() == f"qzc: {word}\n"
    assert files_in(work) == before and {path.name for path in tmp_path.iterdir()} == {"work"}
    for name in before:
        assert (work / name).read_text() == "old"


@posix_only
def test_signals_that_are_ignored_stay_ignored(model_file: Path, tmp_path: Path) -> None:
    """As `nohup` and scripts' background jobs want it."""
    text = f"trap '' HUP INT; {' '.join(command('pack', model_file, '-o', tmp_path / 'm.qzc'))}"
    running = subprocess.Popen(["sh", "-c", text], env=environment(), stderr=subprocess.PIPE, start_new_session=True)
    for _ in range(20):
        time.sleep(0.02)
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGHUP)
            os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    assert qzc.verify(tmp_path / "m.qzc").tensors == 20


# ---------------------------------------------------------------------------------------------------------------------
# Places that cannot be written to


def copy_of_the_package(folder: Path) -> Path:
    """The package as an installation has it, without caches."""
    source = Path(qzc.__file__).parent
    shutil.copytree(source, folder / "qzc", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder with a copy of the package that nobody may write to."""
    folder = copy_of_the_package(tmp_path / "site")
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    yield folder
    for path in folders:
        path.chmod(0o755)


@posix_only
@pytest.mark.parametrize(
    "variables",
    [
        {"HOME": "/dev/null", "NUMBA_CACHE_DIR": "/dev/null/cache"},
        pytest.param({"HOME": "/dev/null", "NUMBA_CACHE_DIR": None}, marks=pytest.mark.slow),
        pytest.param({"HOME": None, "NUMBA_CACHE_DIR": None}, marks=pytest.mark.slow),
    ],
)
def test_no_place_for_caches(variables: dict[str, Any], read_only: Path, fixtures: Path, tmp_path: Path) -> None:
    """Costs the time to compile, and nothing else."""
    golden = fixtures / "golden" / "huffman-4bit.qzc"
    result = process(
        "unpack", golden, "-o", tmp_path / "m.safetensors",
        env={"XDG_CACHE_HOME": None, **variables, "PYTHONPATH": str(read_only)},
        preexec_fn=without_privilege(),
        cwd=tmp_path,
    )  # fmt: skip
    assert result.code == 0 and len(result.stderr.splitlines()) == 1
    assert not [path for path in read_only.rglob("__pycache__")]
    ok("unpack", golden, "-o", tmp_path / "again.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
