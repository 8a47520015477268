"""`qzc stats` and `stats()` on real and on degenerate checkpoints."""

import csv
import io
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

from qzc.analysis.code_stats import CodedSize
from qzc.analysis.tensor_stats import TensorStats
from qzc.cli.stats import command
from qzc.cli.stats_columns import CODERS as CODER_COLUMNS
from qzc.cli.stats_columns import CONTROL, ENTROPIES, FITS, FLOATS, PRECISIONS, TENSORS
from qzc.codec.errors import InvalidArgumentError
from qzc.formats.reader import Reader
from qzc.formats.safetensors import SafetensorsFile
from qzc.packer import PackOptions, pack
from qzc.quantize.select import Selection, parse_bits
from qzc.statistics.deep_figures import CODERS
from qzc.statistics.measure import ModelStats, stats

SECTION_COLUMNS: list[Any] = [PRECISIONS, ENTROPIES, CODER_COLUMNS, FLOATS, FITS, CONTROL]
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


def coded_sizes(tensor: TensorStats) -> CodedSize:
    """All planes of a tensor together."""
    if tensor.sizes.codes:
        return tensor.sizes.codes.final + tensor.sizes.codes.zero_point + tensor.sizes.codes.scale
    return tensor.sizes.lossless.coded if tensor.sizes.lossless else CodedSize()


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_qzc_is_accounted_for_to_the_byte_and_foreseen(name: str, model_file: Path, tmp_path: Path) -> None:
    path = packed(model_file, tmp_path, SELECTIONS[name])
    measured = stats(path)
    check_foreseen(stats(model_file, SELECTIONS[name], gzip=False), measured)
    assert measured.kind == "qzc"
    assert sum(measured.totals.parts.values()) == measured.totals.sizes.stored_nbytes == path.stat().st_size
    with Reader(path) as reader:
        for tensor in measured.tensors:
            elsewhere = coded_sizes(tensor)
            beside = elsewhere.index + elsewhere.tables
            assert tensor.sizes.stored_nbytes - beside == reader.info(tensor.name).nbytes
            if tensor.sizes.codes:
                codes = reader.quantized(tensor.name).codes
                assert tensor.sizes.codes.entropy_bits == pytest.approx(codes.size * entropy(codes), rel=1e-9)
    # Every table is charged to one tensor.
    charged = sum(coded_sizes(tensor).tables for tensor in measured.tensors)
    assert charged == measured.totals.parts["tables"]


def check_foreseen(before: ModelStats, after: ModelStats) -> None:
    """To the byte, part by part and tensor by tensor, shared tables and alignment included."""
    assert dict(before.totals.parts) == dict(after.totals.parts)
    assert before.totals.sizes.stored_nbytes == after.totals.sizes.stored_nbytes
    for planned, found in zip(before.tensors, after.tensors, strict=True):
        assert (planned.name, planned.tied_to, planned.shape) == (found.name, found.tied_to, found.shape)
        assert planned.sizes.stored_nbytes == found.sizes.stored_nbytes
        assert planned.sizes.lossless == found.sizes.lossless
        want, have = planned.sizes.codes, found.sizes.codes
        assert (want is None) == (have is None)
        if want and have:
            assert (want.final, want.scale, want.zero_point) == (have.final, have.scale, have.zero_point)
            assert (want.entropy_bits, want.packed_zstd_nbytes) == (have.entropy_bits, have.packed_zstd_nbytes)


@pytest.mark.parametrize("name", ["group", "eight"])
def test_huffman_is_what_pack_writes(name: str, model_file: Path, tmp_path: Path) -> None:
    before = stats(model_file, SELECTIONS[name], gzip=False)
    after = stats(packed(model_file, tmp_path, SELECTIONS[name], coder="huffman"))
    for planned, found in zip(before.tensors, after.tensors, strict=True):
        if planned.sizes.codes and found.sizes.codes:
            want, have = planned.sizes.codes.coded["huffman"], found.sizes.codes.final
            assert (have.payload, have.index, have.coders) == (want.payload, want.index, want.coders)
            assert have.tables <= want.tables  # shared with another tensor
            assert want.gaps <= have.gaps < want.gaps + 64  # plus the way to the first chunk's place


def test_lossless_and_shards_and_chunks_are_what_pack_writes(model_folder: Path, tmp_path: Path) -> None:
    before = stats(model_folder, lossless=True, gzip=False, chunk_codes=1 << 14)
    pack(model_folder, tmp_path / "packed", PackOptions(lossless=True, chunk_codes=1 << 14))
    files = list((tmp_path / "packed").glob("*.qzc.safetensors"))
    assert before.totals.sizes.stored_nbytes == sum(file.stat().st_size for file in files)
    assert before.totals.parts["source"] > 0
    with pytest.raises(InvalidArgumentError, match="lossless"):
        stats(model_folder, Selection(), lossless=True)


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
        for name in (name for name, coded in reader.profile.coded.items() if coded.args):
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
    """Each tensor at the one precision."""
    return {tensor["name"]: tensor | tensor["precisions"][0] for tensor in measured.to_json()["tensors"]}


def test_degenerate_tensors(tmp_path: Path) -> None:
    measured = stats(degenerate(tmp_path), Selection(include=("*",)))
    json.dumps(measured.to_json(), allow_nan=False)
    tensors = by_name(measured)
    assert tensors["nan"]["reason"] == "has NaN or Inf" and tensors["nan"]["codes"] is None
    assert tensors["integers"]["codes"] is None and tensors["integers"]["bits_per_weight"] < 16
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
    assert header == [column.key for column in TENSORS["safetensors"]]
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
    assert document["schema"] == "qzc.stats/2" and document["kind"] == "safetensors" and document["bits"] == [3]
    codes = [found for tensor in document["tensors"] if (found := tensor["precisions"][0]["codes"])]
    grids = {json.dumps(one["grid"]) for one in codes}
    assert len(grids) == 1 and json.loads(grids.pop())["num_bits"] == 3
    assert document["totals"]["precisions"][0]["codes"]["log2_levels"] == 3.0
    path = packed(model_file, tmp_path, SELECTIONS["group"])
    document = json.loads(run(str(path), "--json")[0])
    (total,) = document["totals"]["precisions"]
    assert document["kind"] == "qzc" and sum(total["parts"].values()) == path.stat().st_size == total["stored_nbytes"]


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
    for columns in (*TENSORS.values(), *SECTION_COLUMNS):
        assert not [column.key for column in columns if f"`{column.key}`" not in text]

    def keys(value: Any) -> set[str]:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return set(value if isinstance(value, dict) else ()).union(*map(keys, inner))

    names = {"num_bits", "symmetric", "strategy", "group_size", "scale_method", "scale_dtype"} | set(CODERS)
    simple = json.loads(run(str(model_file), "--no-gzip", "--json")[0])
    lossless = json.loads(run(str(model_file), "--no-gzip", "--lossless", "--json")[0])
    deep = json.loads(run(str(model_file), "--bits", "3,4", "--sections", "all", "--no-gzip", "--json")[0])
    names |= {curve["grid"] for curve in deep["curves"]}
    for document in (simple, lossless, deep):
        assert not [key for key in sorted(keys(document) - names) if f"`{key}`" not in text]
    assert set(simple) == set(lossless) == set(deep)
    for one, other in ((simple, lossless), (simple, deep)):  # one schema: what is not measured is null or empty
        assert set(one["totals"]) == set(other["totals"])
        assert set(one["tensors"][0]) == set(other["tensors"][0])


def test_sections_in_a_pipe(model_file: Path) -> None:
    stdout, stderr = run(str(model_file), "--no-gzip", "--bits", "4,2-3", "--sections", "precisions, fits,tensors")
    blocks = [block.splitlines() for block in stdout.strip("\n").split("\n\n")]
    assert [block[0] for block in blocks] == ["# precisions", "# tensors", "# fits"]
    header, *rows = [line.split("\t") for line in blocks[0][1:]]
    assert header == [column.key for column in PRECISIONS if column.key != "entropy_error"]
    assert [row[0] for row in rows] == ["2", "3", "4"]
    entropies = [float(row[header.index("entropy")]) for row in rows]
    assert entropies == sorted(entropies) and "below 10 dB" in stderr
    header, *rows = [line.split("\t") for line in blocks[1][1:]]
    assert len(rows) == 3 * 20 + 3 and rows[0][0] == rows[2][0] and [row[1] for row in rows[-3:]] == ["2", "3", "4"]
    assert blocks[2][-1].startswith("TOTAL\t")


def test_csv_and_markdown(model_file: Path) -> None:
    stdout, stderr = run(str(model_file), "--no-gzip", "--bits", "3,4", "--csv")
    header, *rows = csv.reader(io.StringIO(stdout))
    assert header[:2] == ["bits", "entropy"] and [row[0] for row in rows] == ["3", "4"]
    assert "On the original bytes" in stderr
    stdout, _ = run(str(model_file), "--no-gzip", "--bits", "3,4", "--md", "--sections", "precisions,floats")
    assert stdout.startswith("## Precisions side by side\n\n| bits | H0 |") and "\n\n## Entropy of the fields" in stdout
    assert run(str(model_file), "--no-gzip", "--md", "--top", "1")[0].startswith("| tensor | shape |")


def test_a_sample_is_said_to_be_one(model_file: Path) -> None:
    stdout, stderr = run(str(model_file), "--no-gzip", "--bits", "4", "--sample", "8000", "--sections", "precisions")
    header, row = [line.split("\t") for line in stdout.splitlines()]
    error = float(row[header.index("entropy_error")])
    assert 0 < error < 0.05 and f"{error:.4f} bits per code" in stderr and "sizes are estimates" in stderr
    whole = run(str(model_file), "--no-gzip", "--bits", "4", "--sample", "0", "-q")
    assert whole == run(str(model_file), "--no-gzip", "-q")


def test_rules_by_name_have_sections_too(model_file: Path) -> None:
    stdout, _ = run(str(model_file), "--no-gzip", "--bits", "*.mlp.*=2,*=5", "--sections", "precisions,coders")
    assert {line.split("\t")[0] for line in stdout.splitlines() if "\t" in line} == {"bits", "rules"}


def test_lossless_says_where_the_information_sits(model_file: Path, tmp_path: Path) -> None:
    stdout, stderr = run(str(model_file), "--no-gzip", "--lossless")
    header, *rows = [line.split("\t") for line in stdout.splitlines()]
    total = dict(zip(header, rows[-1], strict=True))
    assert float(total["sign"]) > 0.99 and 2 < float(total["exponent"]) < 3 and 22.9 < float(total["mantissa"]) < 23
    assert 26 < float(total["bound"]) < float(total["bits_per_weight"]) < 27
    assert "F32: 32 bits an element, bound 26." in stderr and "the exponent 2." in stderr
    path = tmp_path / "lossless.qzc"
    pack(model_file, path, PackOptions(lossless=True))
    stdout, again = run(str(path))
    held = dict(zip(stdout.splitlines()[0].split("\t"), stdout.splitlines()[-1].split("\t"), strict=True))
    assert all(held[key] == total[key] for key in ("sign", "exponent", "mantissa", "bound", "stored_nbytes"))
    assert again.splitlines()[-1] == stderr.splitlines()[-1]


def test_a_checkpoint_that_is_quantized_already(fixtures: Path) -> None:
    pytest.importorskip("gguf")
    stdout, stderr = run(str(fixtures / "layouts" / "k_quants.gguf"))
    header, *rows = [line.split("\t") for line in stdout.splitlines()]
    assert "bound" in header and any(row[header.index("bound")] for row in rows)
    assert "No tensor is quantized." in stderr and "bound" in stderr and "reached" in stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sections", "beauty"], "no section 'beauty'"),
        (["--json", "--csv"], "exclude each other"),
        (["--lossless", "--bits", "3"], "no options of grids"),
    ],
)
def test_bad_usage(arguments: list[str], message: str, model_file: Path) -> None:
    result = CliRunner().invoke(command, [str(model_file), *arguments])
    assert result.exit_code == 2 and message in result.stderr


@pytest.mark.parametrize("arguments", [["--bits", "2-8"], ["--lossless"], ["--sample", "5"], ["--sections", "floats"]])
def test_a_packed_file_is_what_it_is(arguments: list[str], fixtures: Path) -> None:
    result = CliRunner().invoke(command, [str(fixtures / "golden" / "ans-4bit.qzc"), *arguments])
    assert result.exit_code == 2 and "no meaning here" in result.stderr


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


def on_a_terminal(*runs: tuple[int, list[str]]) -> list[str]:
    """What `qzc stats` writes to terminals of these widths, given these arguments; all in one process."""
    pty = pytest.importorskip("pty")
    main, terminal = pty.openpty()
    code = (
        "import os\nfrom qzc.cli.stats import command\n"
        f"for columns, arguments in {runs!r}:\n"
        "    os.environ['COLUMNS'] = str(columns)\n"
        "    command(arguments, standalone_mode=False)\n"
        "    print('=====', flush=True)\n"
    )
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(Path(__file__).parent.parent)}
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
    return re.sub(r"\x1b\[[0-9;]*m", "", written.decode()).split("=====")[:-1]


def test_a_terminal_gets_tables_that_fit(model_file: Path, tmp_path: Path) -> None:
    path = packed(model_file, tmp_path, SELECTIONS["group"])
    several = [str(model_file), "--no-gzip", "--bits", "3,4"]
    wide, narrow, precisions, sections = on_a_terminal(
        (250, [str(path)]),
        (80, [str(path), "--top", "2"]),
        (100, several),
        (100, [*several, "--sections", "floats,fits,entropies,grids"]),
    )
    with Reader(path) as reader:
        assert all(name in wide for name in reader.keys())
    assert "SNR" not in wide and "zstd -1 packed" in wide and "Too narrow" not in wide
    assert max(map(len, narrow.splitlines())) <= 80
    assert "Too narrow for: " in narrow and "…" not in narrow and "H0" in narrow
    assert "Codes take" in wide and "Codes take" in narrow  # a terminal has the notes below the table
    for text in (precisions, sections):
        assert max(map(len, text.splitlines())) <= 100 and "…" not in text
    assert all(word in precisions for word in ("H0", "ans", "total", "to FP32", "to FP16", "SNR dB", "On the original"))
    assert "# " not in sections and "Bits at equal weight SNR" in sections and "student-t" in sections
