"""The command line: help, the commands that list and show, and names of every kind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qzc
from qzc.cli.main import COMMANDS, cli
from qzc.packer import PackOptions
from qzc.version import VERSION
from tests.command_line import Argument, command, environment, inside, ok, process
from tests.shards import shard

DOWN = "model.layers.0.mlp.down_proj.weight"
NORM = "model.norm.weight"
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="signals and terminals of POSIX")


@pytest.fixture(scope="module")
def packed(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture packed with the default grid. Read only."""
    return qzc.pack(model_file, tmp_path_factory.mktemp("packed") / "model.qzc").output


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
    assert re.match(rf"Usage: qzc {name} \[OPTIONS\] \[?MODEL", text)
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
        line = re.sub(r"'([^']*)'", lambda match: match[1].replace(" ", "\0"), re.split("[|>]", line)[0])
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
    assert re.search(r"^tensors +20: 15 quantized, 0 coded without loss, 5 as they are, 0 tied$", text, re.MULTILINE)
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
    assert ok("stats", packed, "--json").json["schema"] == "qzc.stats/2"


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


def test_options_of_pack_reach_the_library(model_file: Path, tmp_path: Path) -> None:
    ok("pack", model_file, "-o", tmp_path / "a.qzc", "--coder", "huffman", "--chunk-codes", 2048, "--bits", "3")
    options = PackOptions(qzc.Selection(qzc.parse_bits(3)), coder="huffman", chunk_codes=2048)
    qzc.pack(model_file, tmp_path / "b.qzc", options)
    assert (tmp_path / "a.qzc").read_bytes() == (tmp_path / "b.qzc").read_bytes()
