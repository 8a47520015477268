"""The command line as a whole: help, streams, listing commands, terminals, pipes and signals."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qzc
from qzc.cli.main import COMMANDS, cli
from qzc.packer import PackOptions
from qzc.version import VERSION
from tests.command_line import Argument, command, environment, inside, ok, process, without_privilege
from tests.shards import files_in, shard

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
# Help


def test_help_names_every_command_in_full() -> None:
    text = ok("--help").stdout
    for name in COMMANDS:
        assert re.search(rf"^  {name}  +[A-Z].*\.$", text, re.MULTILINE), name
    assert "..." not in text.partition("Commands:")[2]
    assert all(f" {code} " in text for code in (0, 1, 2, 3, 4, 130))
    assert ok("-h").stdout == text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_has_examples(name: str) -> None:
    text = ok(name, "--help").stdout
    assert text.startswith(f"Usage: qzc {name} [OPTIONS] MODEL")
    examples = text.partition("Examples:\n")[2].splitlines()
    assert examples and all(line.startswith(f"    qzc {name} ") for line in examples)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_example_is_one_that_parses(name: str) -> None:
    context = click.Context(cli, info_name="qzc")
    found = cli.get_command(context, name)
    assert found is not None and found.epilog
    for parameter in found.params:
        assert isinstance(parameter, click.Argument) or getattr(parameter, "help", None), parameter.name
    for line in found.epilog.splitlines()[2:]:
        line = re.sub(r"'([^']*)'", lambda match: match[1].replace(" ", "\0"), line.partition("|")[0])
        arguments = [word.replace("\0", " ") for word in line.split()[2:]]
        found.make_context(name, arguments, parent=context)  # raises UsageError for an unknown option


def test_version_and_usage() -> None:
    assert ok("--version").stdout == f"qzc, version {VERSION}\n"
    bare = inside()
    assert bare.code == 2 and bare.stdout == "" and bare.stderr.startswith("Usage: qzc")
    for arguments, message in {
        ("packk",): "No such command 'packk'",
        ("pack",): "Missing argument 'MODEL'; see qzc pack --help",
        ("ls", "a", "b"): "Got unexpected extra argument (b)",
        ("ls", "--colour", "a"): "No such option '--colour'",
    }.items():
        failed = inside(*arguments)
        assert failed.code == 2 and message in failed.error and failed.raw == b""


def modules_loaded_by(*arguments: Argument) -> set[str]:
    code = (
        "import sys; from qzc.cli.main import run; code = run(sys.argv[1:]); "
        "print(*sys.modules, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment(), capture_output=True, check=True
    )
    return set(done.stderr.decode().split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_no_numpy(arguments: list[str]) -> None:
    assert not {"numpy", "numba", "rich"} & modules_loaded_by(*arguments)


@pytest.mark.parametrize("name", ["ls", "info"])
def test_listing_loads_no_compiler(name: str, packed: Path, model_file: Path) -> None:
    for path in (packed, model_file):
        assert not {"numba", "rich", "safetensors", "zstandard"} & modules_loaded_by(name, path)


# ---------------------------------------------------------------------------------------------------------------------
# ls, info, cat


def test_ls(packed: Path, model_file: Path) -> None:
    rows = ok("ls", packed).table
    assert [row["tensor"] for row in rows] == sorted(load_file(model_file))
    down = next(row for row in rows if row["tensor"] == DOWN)
    assert down["shape"] == "[256, 192]" and down["dtype"] == "F32" and down["grid"] == "4-bit group 128 mse"
    assert 3.5 < float(down["bits_per_weight"]) < 4.2
    document = ok("ls", packed, "--json").json
    assert document["schema"] == "qzc.ls/1"
    for row, entry in zip(rows, document["tensors"], strict=True):
        assert (entry["name"], str(entry["nbytes"])) == (row["tensor"], row["nbytes"])
        assert entry["nbytes"] == sum(entry["stored"].values())
    grid = next(entry["grid"] for entry in document["tensors"] if entry["name"] == DOWN)
    assert grid["num_bits"] == 4 and grid["group_size"] == 128


def test_ls_of_safetensors_and_folders(model_file: Path, model_folder: Path, tmp_path: Path) -> None:
    rows = ok("ls", model_file).table
    assert {row["grid"] for row in rows} == {"keep"} and len(rows) == 20
    assert [row["tensor"] for row in ok("ls", model_folder).table] == [row["tensor"] for row in rows]
    sharded = shard(model_folder, tmp_path / "llama")
    assert sorted(row["tensor"] for row in ok("ls", sharded).table) == [row["tensor"] for row in rows]


def test_info(packed: Path, model_file: Path) -> None:
    text = ok("info", packed).stdout
    assert re.search(r"^tensors +20: 15 quantized, 5 as they are, 0 tied$", text, re.MULTILINE)
    assert re.search(r"^grid +4-bit group 128 mse: 15 tensors$", text, re.MULTILINE)
    # The parts in bytes make the whole file.
    size = packed.stat().st_size
    parts = dict(re.findall(r"^([\w ]+?)  +([\d,]+) bytes", text, re.MULTILINE))
    numbers = {key: int(value.replace(",", "")) for key, value in parts.items()}
    assert numbers.pop("size") == size == sum(numbers.values())
    (file,) = ok("info", packed, "--json").json["files"]
    assert file["nbytes"] == size and file["quantized"] == 15 and file["metadata"] == {"format": "pt"}
    assert re.search(r"^format +safetensors$", ok("info", model_file).stdout, re.MULTILINE)


def test_info_of_a_tensor(packed: Path) -> None:
    text = ok("info", packed, DOWN).stdout
    assert re.search(r"^grid +4-bit group 128 mse$", text, re.MULTILINE)
    assert ok("info", packed, DOWN, "--json").json["schema"] == "qzc.tensor/1"
    failed = inside("info", packed, "nothing")
    assert failed.code == 2 and "no tensor named 'nothing'; `qzc ls` shows the names" in failed.error


def test_cat(packed: Path, tmp_path: Path) -> None:
    with qzc.open(packed) as model:
        whole, codes = model.dequantize(DOWN), model.packed(DOWN).codes
    for rows, part in {"3:7": slice(3, 7), ":2": slice(0, 2), "-2:": slice(-2, None), "9:9": slice(9, 9)}.items():
        ok("cat", packed, DOWN, "--rows", rows, "-f", "-o", tmp_path / "rows.npy")
        assert np.array_equal(np.load(tmp_path / "rows.npy"), whole[part])
    ok("cat", packed, DOWN, "--codes", "-o", tmp_path / "codes.npy")
    assert np.array_equal(np.load(tmp_path / "codes.npy"), codes)
    refused = inside("cat", packed, DOWN, "-o", tmp_path / "codes.npy")
    assert refused.code == 1 and "already exists" in refused.error
    ok("cat", packed, DOWN, "--dtype", "float16", "-f", "-o", tmp_path / "half.npy")
    assert np.load(tmp_path / "half.npy").dtype == np.float16
    result = process("cat", packed, NORM)
    (tmp_path / "norm.npy").write_bytes(result.raw)
    assert np.load(tmp_path / "norm.npy").shape == (256,) and result.stderr == ""


def test_cat_of_dtypes_that_npy_lacks(tmp_path: Path) -> None:
    values = np.arange(6).reshape(2, 3)
    dtypes = {"bf16": ml_dtypes.bfloat16, "f8": ml_dtypes.float8_e4m3fn, "bool": np.bool_, "i64": np.int64}
    qzc.save_file({name: values.astype(dtype) for name, dtype in dtypes.items()}, tmp_path / "m.qzc")
    for name, dtype in dtypes.items():
        ok("cat", tmp_path / "m.qzc", name, "-f", "-o", tmp_path / "x.npy")
        found = np.load(tmp_path / "x.npy", allow_pickle=False)
        assert found.dtype == (np.float32 if name in ("bf16", "f8") else dtype)
        assert np.array_equal(found, values.astype(dtype).astype(found.dtype))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nothing",), 2, "no tensor named 'nothing'"),
        ((DOWN, "--rows", "3"), 2, "'3' is not a range such as 0:128"),
        ((DOWN, "--rows", "1:2:3"), 2, "'1:2:3' is not a range"),
        ((NORM, "--codes"), 2, "is not quantized"),
        ((DOWN, "-o", "no/such/folder.npy"), 1, "there is no folder"),
    ],
)
def test_cat_refuses(arguments: tuple[str, ...], code: int, message: str, packed: Path) -> None:
    failed = inside("cat", packed, *arguments)
    assert failed.code == code and message in failed.error and failed.raw == b""


def test_stats_of_a_packed_file_takes_no_grid(packed: Path) -> None:
    for option in (("--bits", "3"), ("--exclude", "x"), ("--asymmetric",), ("--scale", "mse")):
        failed = inside("stats", packed, *option)
        assert failed.code == 2 and "has no meaning here" in failed.error
    assert ok("stats", packed, "--json").json["schema"] == "qzc.stats/1"


def test_stats_warns_of_rules_without_effect(model_file: Path) -> None:
    result = ok("stats", model_file, "--no-gzip", "--exclude", "emebd*")
    assert "qzc: warning: --exclude emebd* has no effect on any tensor" in result.stderr.splitlines()


# ---------------------------------------------------------------------------------------------------------------------
# Names of every kind


def test_long_names_are_never_cut_in_pipes(tmp_path: Path) -> None:
    names = ["n" * 300, "a.b" * 70 + ".weight"]
    save_file({name: np.zeros((64, 128), np.float32) for name in names}, tmp_path / "m.safetensors")
    qzc.pack(tmp_path / "m.safetensors")
    for arguments in (
        ("ls", "m.qzc"),
        ("stats", "m.qzc"),
        ("info", "m.qzc", names[0]),
        ("pack", "m.safetensors", "-fv"),
    ):
        result = process(*arguments, cwd=tmp_path, env={"COLUMNS": "40"})
        text = result.stdout + result.stderr
        assert result.code == 0 and all(name in text for name in names[: 1 if "info" in arguments else 2])


def test_control_characters_are_escaped(tmp_path: Path) -> None:
    name = "w\x1b[31m\n\u202e"
    save_file({name: np.zeros((64, 128), np.float32)}, tmp_path / "m.safetensors")
    qzc.pack(tmp_path / "m.safetensors")
    for arguments in (
        ("ls", "m.qzc"),
        ("info", "m.qzc", name),
        ("stats", "m.qzc"),
        ("verify", "m.qzc", "--against", "m.safetensors", "-v"),
        ("pack", "m.safetensors", "-fv"),
        ("cat", "m.qzc", name + "?"),
    ):
        paths = [tmp_path / a if a.startswith("m.") else a for a in arguments]
        result = inside(*paths)
        text = result.stdout + result.stderr
        assert "\x1b" not in text and "\u202e" not in text and r"\x1b[31m\n\u202e" in text, arguments
    assert ok("ls", tmp_path / "m.qzc", "--json").json["tensors"][0]["name"] == name


@posix_only
def test_file_names_that_are_not_text(packed: Path, tmp_path: Path) -> None:
    name = b"m\xff\n.qzc"
    (tmp_path / os.fsdecode(name)).write_bytes(packed.read_bytes())
    for arguments in (
        ["ls", "--json"],
        ["info"],
        ["info", "--json"],
        ["verify"],
        ["stats", "--json"],
        ["unpack", "-fv"],
    ):
        arguments = [a for a in arguments if a != "-fv"] + (["-f"] if "unpack" in arguments else [])
        done = subprocess.run(
            [*command(*arguments), name], cwd=tmp_path, env=environment(), capture_output=True, check=False
        )
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
        done.stdout.decode("utf-8")


def test_output_in_a_narrow_encoding(tmp_path: Path) -> None:
    save_file({"größe": np.zeros((64, 128), np.float32)}, tmp_path / "m.safetensors")
    env: dict[str, str | None] = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    assert process("ls", tmp_path / "m.safetensors", env=env).code == 0
    document = process("ls", tmp_path / "m.safetensors", "--json", env=env)
    assert document.json["tensors"][0]["name"] == "größe"


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
    import selectors

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
    import shutil

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
        {"HOME": None, "NUMBA_CACHE_DIR": None},
        pytest.param({"HOME": "/nonexistent", "NUMBA_CACHE_DIR": "/nonexistent/cache"}, marks=pytest.mark.slow),
        pytest.param({"HOME": "/dev/null", "NUMBA_CACHE_DIR": "/dev/null/cache"}, marks=pytest.mark.slow),
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


def test_options_of_pack_reach_the_library(model_file: Path, tmp_path: Path) -> None:
    ok("pack", model_file, "-o", tmp_path / "a.qzc", "--coder", "huffman", "--chunk-codes", 2048, "--bits", "3")
    options = PackOptions(qzc.Selection(qzc.parse_bits(3)), "huffman", 2048)
    qzc.pack(model_file, tmp_path / "b.qzc", options)
    assert (tmp_path / "a.qzc").read_bytes() == (tmp_path / "b.qzc").read_bytes()
