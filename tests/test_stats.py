"""`qzc stats` and `stats()` on real and on degenerate checkpoints."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from safetensors.numpy import save_file

from qzc.cli.stats import COLUMNS, command
from qzc.codec.errors import InvalidArgumentError
from qzc.formats.reader import Reader
from qzc.formats.safetensors import SafetensorsFile
from qzc.measure import ModelStats, stats
from qzc.packer import PackOptions, pack
from qzc.quantize.select import Selection, parse_bits

SELECTIONS = {
    "group": Selection(),
    "channel": Selection(strategy="channel"),
    "asymmetric": Selection(parse_bits("3"), symmetric=False),
    "tensor": Selection(strategy="tensor"),
    "eight": Selection(parse_bits("8")),
    "one": Selection(parse_bits("1")),
    "mixed": Selection(parse_bits("*.mlp.*=2,*=5")),
    "nothing": Selection(parse_bits("keep")),
}


def entropy(codes: NDArray[np.uint8]) -> float:
    counts = np.bincount(codes.ravel())
    return -math.fsum(n / codes.size * math.log2(n / codes.size) for n in counts.tolist() if n)


def packed(source: Path, folder: Path, selection: Selection, **options: Any) -> Path:
    output = folder / "model.qzc"
    pack(source, output, PackOptions(selection, **options))
    return output


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_qzc_is_accounted_for_to_the_byte(name: str, model_file: Path, tmp_path: Path) -> None:
    path = packed(model_file, tmp_path, SELECTIONS[name])
    measured = stats(path)
    assert measured.kind == "qzc"
    assert sum(measured.totals.parts.values()) == measured.totals.sizes.stored_nbytes == path.stat().st_size
    with Reader(path) as reader:
        for tensor in measured.tensors:
            shared = tensor.sizes.codes.final.tables + tensor.sizes.codes.zero_point.tables if tensor.sizes.codes else 0
            assert tensor.sizes.stored_nbytes - shared == reader.info(tensor.name).nbytes
            if tensor.sizes.codes:
                codes = reader.quantized(tensor.name).codes
                assert tensor.sizes.codes.entropy_bits == pytest.approx(codes.size * entropy(codes), rel=1e-9)
    # Every table is charged to one tensor.
    charged = sum(
        t.sizes.codes.final.tables + t.sizes.codes.zero_point.tables for t in measured.tensors if t.sizes.codes
    )
    assert charged == measured.totals.parts["tables"]


@pytest.mark.parametrize("coder", ["ans", "huffman"])
@pytest.mark.parametrize("name", ["group", "asymmetric", "eight"])
def test_what_would_be_packed_is_what_pack_writes(name: str, coder: str, model_file: Path, tmp_path: Path) -> None:
    before = {t.name: t for t in stats(model_file, SELECTIONS[name], gzip=False).tensors}
    after = stats(packed(model_file, tmp_path, SELECTIONS[name], coder=coder)).tensors
    assert sorted(before) == [tensor.name for tensor in after]
    for tensor in after:
        planned = before[tensor.name]
        assert (planned.tied_to, planned.shape, planned.sizes.parameters) == (
            tensor.tied_to,
            tensor.shape,
            tensor.sizes.parameters,
        )
        if tensor.sizes.codes is None:
            assert planned.sizes.codes is None
            continue
        assert planned.sizes.codes is not None
        want, have = planned.sizes.codes.coded[coder], tensor.sizes.codes.final
        assert (have.payload, have.index, have.coders) == (want.payload, want.index, want.coders)
        assert have.tables <= want.tables  # shared with another tensor
        assert want.gaps <= have.gaps < want.gaps + 64  # plus the way to the first chunk's place
        assert planned.sizes.codes.entropy_bits == tensor.sizes.codes.entropy_bits
        assert planned.sizes.codes.packed_zstd_nbytes == tensor.sizes.codes.packed_zstd_nbytes
        assert planned.sizes.codes.scale_nbytes == tensor.sizes.codes.scale_nbytes


@pytest.mark.parametrize("name", ["group", "channel", "asymmetric"])
def test_coders_come_close_to_the_entropy(name: str, model_file: Path) -> None:
    codes = stats(model_file, SELECTIONS[name], gzip=False).totals.sizes.codes
    assert codes is not None
    ans, bound = codes.coded_bits("ans"), codes.entropy_bits / codes.count
    # 32 bytes of index and a table per tensor, of some 40,000 codes here: 0.01 bits; states and precision as much again.
    assert ans is not None and bound < ans < bound + 0.05
    assert codes.level_bits / codes.count == math.log2(codes.levels or 0)


def test_snr_is_that_of_the_dequantized_weights(model_file: Path, tmp_path: Path) -> None:
    path = packed(model_file, tmp_path, SELECTIONS["group"])
    signal = noise = 0.0
    with SafetensorsFile(model_file) as source, Reader(path) as reader:
        for name in reader.profile.coded:
            weights = source.array(name).astype(np.float64)
            signal += float(np.sum(weights**2))
            noise += float(np.sum((weights - reader.quantized(name).dequantize()) ** 2))
    codes = stats(model_file, SELECTIONS["group"], gzip=False).totals.sizes.codes
    assert codes is not None and codes.snr_db == pytest.approx(10 * math.log10(signal / noise), abs=1e-9)


def test_threads_change_nothing(model_file: Path) -> None:
    one, four = (stats(model_file, threads=threads, gzip=False) for threads in (1, 4))
    assert one == four
    assert json.dumps(one.to_json()) == json.dumps(four.to_json())


def test_progress_ends_near_the_total(model_file: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    stats(model_file, progress=lambda *call: calls.append(call))
    done = [call[1] for call in calls]
    assert done == sorted(done) and 0 < done[-1] <= calls[-1][2]


def degenerate(folder: Path) -> Path:
    rng = np.random.default_rng(3)
    path = folder / "model.safetensors"
    tensors: dict[str, NDArray[Any]] = {
        "empty": np.zeros((0, 5), np.float32),
        "one": np.ones((1, 1), np.float32),
        "scalar": np.array(2.5, np.float32),
        "zeros": np.zeros((64, 64), np.float32),
        "constant": np.full((64, 64), 0.25, np.float32),
        "nan": np.full((64, 64), np.nan, np.float32),
        "integers": np.arange(5000, dtype=np.int64),
        "normal\tname\n": rng.standard_normal((64, 64)).astype(np.float32),
    }
    save_file(tensors, path)
    return path


def by_name(measured: ModelStats) -> dict[str, Any]:
    return {tensor["name"]: tensor for tensor in measured.to_json()["tensors"]}


def test_degenerate_tensors(tmp_path: Path) -> None:
    measured = stats(degenerate(tmp_path), Selection(include=("*",)))
    json.dumps(measured.to_json(), allow_nan=False)
    tensors = by_name(measured)
    assert tensors["nan"]["reason"] == "has NaN or Inf" and tensors["nan"]["codes"] is None
    assert tensors["integers"]["codes"] is None and tensors["integers"]["bits_per_weight"] == 64.0
    assert tensors["empty"]["bits_per_weight"] is None and tensors["empty"]["nbytes"] == 0
    zeros = tensors["zeros"]["codes"]
    assert zeros["entropy_bits_per_code"] == 0.0 and zeros["levels_used"] == 1 and zeros["levels"] == 16
    assert zeros["coded"]["ans"]["coders"] == ["constant"]
    assert zeros["snr_db"] is None and zeros["error_energy"] == 0.0
    assert tensors["constant"]["codes"]["entropy_bits_per_code"] == 0.0
    assert measured.totals.coded_tensors == 3
    assert measured.totals.sizes.codes is not None and measured.totals.sizes.codes.count == 3 * 4096


def test_a_checkpoint_without_tensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    measured = stats(tmp_path / "model.safetensors")
    assert measured.tensors == () and measured.totals.sizes.parameters == 0
    result = CliRunner().invoke(command, [str(tmp_path / "model.safetensors"), "--json"], catch_exceptions=False)
    assert json.loads(result.stdout)["totals"]["tensors"] == 0


def test_folders(model_folder: Path, model_file: Path, tmp_path: Path) -> None:
    assert stats(model_folder, gzip=False).totals == stats(model_file, gzip=False).totals
    pack(model_folder, tmp_path / "packed")
    measured = stats(tmp_path / "packed")
    files = list((tmp_path / "packed").glob("*.qzc.safetensors"))
    assert measured.kind == "qzc" and measured.totals.sizes.stored_nbytes == sum(file.stat().st_size for file in files)


def test_a_folder_of_both_kinds_is_refused(model_file: Path, tmp_path: Path) -> None:
    save_file({"other": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    packed(model_file, tmp_path, SELECTIONS["group"])
    with pytest.raises(InvalidArgumentError, match="one by one"):
        stats(tmp_path)


def run(*arguments: str) -> tuple[str, str]:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout, result.stderr


def test_tsv(model_file: Path) -> None:
    stdout, stderr = run(str(model_file))
    header, *rows = [line.split("\t") for line in stdout.splitlines()]
    assert header == [column.key for column in COLUMNS["safetensors"]]
    assert {len(row) for row in rows} == {len(header)}
    with SafetensorsFile(model_file) as file:
        assert [row[0] for row in rows] == [*sorted(file.keys()), "TOTAL"]
    total = dict(zip(header, rows[-1], strict=True))
    assert int(total["nbytes"]) == sum(
        int(row[header.index("nbytes")]) for row in rows[:-1] if "= " not in row[header.index("grid")]
    )
    assert float(total["entropy"]) < float(total["ans"]) < 4
    assert "ANS codes take" in stderr and "zstd -1 on the packed codes takes" in stderr


def test_tsv_keeps_names_on_one_line(tmp_path: Path) -> None:
    stdout, _ = run(str(degenerate(tmp_path)), "--no-gzip", "--include", "*")
    rows = [line.split("\t") for line in stdout.split("\n")[:-1]]
    assert {len(row) for row in rows} == {len(rows[0])} and len(rows) == 8 + 2
    assert "normal\\tname\\n" in [row[0] for row in rows]


def test_json(model_file: Path, tmp_path: Path) -> None:
    document = json.loads(run(str(model_file), "--json", "--bits", "3", "--strategy", "channel")[0])
    assert document["schema"] == "qzc.stats/1" and document["kind"] == "safetensors"
    grids = {json.dumps(tensor["codes"]["grid"]) for tensor in document["tensors"] if tensor["codes"]}
    assert len(grids) == 1 and json.loads(grids.pop())["num_bits"] == 3
    assert document["totals"]["codes"]["log2_levels"] == 3.0
    path = packed(model_file, tmp_path, SELECTIONS["group"])
    document = json.loads(run(str(path), "--json")[0])
    assert document["kind"] == "qzc" and sum(document["totals"]["parts"].values()) == path.stat().st_size


def test_json_is_stable(model_file: Path) -> None:
    assert run(str(model_file), "--json", "-T", "1") == run(str(model_file), "--json", "-T", "3")


def test_top_and_sort(model_file: Path) -> None:
    header, *rows = [line.split("\t") for line in run(str(model_file), "--no-gzip", "--top", "3")[0].splitlines()]
    stored = [int(row[header.index("stored_nbytes")]) for row in rows]
    assert len(rows) == 4 and stored[:3] == sorted(stored[:3], reverse=True)
    assert stored[3] > sum(stored[:3])  # the total is of all
    _, *rows = [
        line.split("\t") for line in run(str(model_file), "--no-gzip", "--sort", "entropy", "-q")[0].splitlines()
    ]
    values = [row[header.index("entropy")] for row in rows[:-1]]
    known = [float(value) for value in values if value]
    assert known == sorted(known, reverse=True) and len(known) > 3
    assert not any(values[len(known) :])  # tensors without a value come last


def test_gzip_can_be_left_out(model_file: Path) -> None:
    assert "gzip6_ratio" not in run(str(model_file), "--no-gzip")[0].splitlines()[0].split("\t")
    document = json.loads(run(str(model_file), "--no-gzip", "--json")[0])
    assert document["totals"]["gzip6_ratio"] is None and document["totals"]["zstd3_ratio"] > 1


def test_every_column_and_every_key_is_documented(model_file: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "stats.md").read_text("utf-8")
    for columns in COLUMNS.values():
        assert not [column.key for column in columns if f"`{column.key}`" not in text]

    def keys(value: Any) -> set[str]:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return set(value if isinstance(value, dict) else ()).union(*map(keys, inner))

    args = {"num_bits", "symmetric", "strategy", "group_size", "scale_method", "scale_dtype"}
    document = json.loads(run(str(model_file), "--no-gzip", "--json")[0])
    assert not [key for key in keys(document) - args if f"`{key}`" not in text]


@pytest.mark.parametrize("arguments", [["--sort", "coded"], ["--sort", "gzip6_ratio", "--no-gzip"]])
def test_a_column_that_is_not_there_is_a_usage_error(arguments: list[str], model_file: Path) -> None:
    result = CliRunner().invoke(command, [str(model_file), *arguments])
    assert result.exit_code == 2 and "no column" in result.stderr


def test_low_entropy_is_not_sold_as_a_gain(model_file: Path) -> None:
    assert "lost precision" in run(str(model_file), "--no-gzip", "--strategy", "tensor")[1]
    assert "lost precision" not in run(str(model_file), "--no-gzip", "--strategy", "group")[1]


def test_quiet_leaves_only_the_data(model_file: Path) -> None:
    stdout, stderr = run(str(model_file), "--no-gzip", "-q")
    assert stdout and stderr == ""


def on_a_terminal(columns: int, *arguments: str) -> str:
    """What `qzc stats` writes to a terminal of this width."""
    pty = pytest.importorskip("pty")
    main, terminal = pty.openpty()
    code = f"from qzc.cli.stats import command; command({[*arguments]!r})"
    environment = {
        **os.environ,
        "COLUMNS": str(columns),
        "TERM": "xterm",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=terminal, stderr=subprocess.DEVNULL, env=environment
    )
    os.close(terminal)
    written = b""
    while True:
        try:
            piece = os.read(main, 1 << 16)
        except OSError:  # Linux: the other end is closed
            piece = b""
        if not piece:
            break
        written += piece
    os.close(main)
    assert process.wait() == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", written.decode())


def test_a_terminal_gets_a_table_that_fits(model_file: Path, tmp_path: Path) -> None:
    path = packed(model_file, tmp_path, SELECTIONS["group"])
    wide = on_a_terminal(250, str(path))
    with Reader(path) as reader:
        assert all(name in wide for name in reader.keys())
    assert "SNR" not in wide and "zstd -1 packed" in wide and "Too narrow" not in wide
    narrow = on_a_terminal(80, str(path), "--top", "2")
    assert max(map(len, narrow.splitlines())) <= 80
    assert "Too narrow for: " in narrow and "…" not in narrow and "H0" in narrow
    assert "Codes take" in wide and "Codes take" in narrow  # a terminal has the notes below the table
