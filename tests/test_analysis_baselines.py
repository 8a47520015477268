"""The gzip and zstd columns against the command line tools themselves."""

import re
import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import zstandard
from numpy.typing import NDArray

from qzc.analysis import baselines
from qzc.analysis.baselines import gzip_nbytes, zlib_nbytes, zstd_nbytes
from qzc.formats.safetensors import SafetensorsFile

RNG = np.random.default_rng(7)
INPUTS: dict[str, NDArray[np.uint8]] = {
    "empty": np.zeros(0, np.uint8),
    "one byte": np.array([65], np.uint8),
    "zeros": np.zeros(3_000_000, np.uint8),  # several pieces
    "noise": RNG.integers(0, 256, 100_000).astype(np.uint8),
    "weights": RNG.standard_normal(300_000).astype(np.float32).view(np.uint8),
    "codes": RNG.binomial(15, 0.5, 500_000).astype(np.uint8),
}


def tool_output(tool: str, *options: str, data: NDArray[np.uint8] | Path) -> int:
    if shutil.which(tool) is None:
        pytest.skip(f"needs the {tool} tool")
    if isinstance(data, Path):
        return len(subprocess.run([tool, *options, "-c", str(data)], capture_output=True, check=True).stdout)
    return len(subprocess.run([tool, *options, "-c"], input=data.tobytes(), capture_output=True, check=True).stdout)


def is_classic_zlib() -> bool:
    """zlib-ng, which some Pythons have instead, makes other choices and other sizes."""
    return re.fullmatch(r"[\d.]+", zlib.ZLIB_RUNTIME_VERSION) is not None


EARLY = np.where(RNG.random(400_000) < 0.9, 0, RNG.integers(0, 256, 400_000)).astype(np.uint8)
"""What halves, mostly by literals: GNU gzip ends its blocks early there, and gains a little."""


@pytest.mark.parametrize("name", [*INPUTS, "early"])
def test_gzip_is_the_size_of_the_real_tool(name: str) -> None:
    # -n: no file name in the header, 10 bytes of header and 8 of trailer remain
    data = INPUTS.get(name, EARLY)
    assert gzip_nbytes(data) == tool_output("gzip", "-6", "-n", data=data)


@pytest.mark.parametrize("name", INPUTS)
def test_zlib_stands_in_for_the_tool(name: str) -> None:
    if not is_classic_zlib():
        pytest.skip("zlib-ng")
    assert zlib_nbytes(INPUTS[name]) == tool_output("gzip", "-6", "-n", data=INPUTS[name])
    theirs = tool_output("gzip", "-6", "-n", data=EARLY)
    assert theirs < EARLY.size / 2
    assert zlib_nbytes(EARLY) == pytest.approx(theirs, rel=0.015)


def test_without_the_tool_zlib_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "_gzip_tool", lambda: "/bin/false")
    assert gzip_nbytes(EARLY) == zlib_nbytes(EARLY)
    monkeypatch.setattr(baselines, "_gzip_tool", lambda: None)
    assert gzip_nbytes(EARLY) == zlib_nbytes(EARLY)


def test_gzip_on_real_weights_is_the_size_of_the_real_tool(model_file: Path) -> None:
    with SafetensorsFile(model_file) as file:
        for name in sorted(file.keys(), key=lambda name: file.info(name).nbytes)[::3]:
            assert gzip_nbytes(file.raw(name)) == tool_output("gzip", "-6", "-n", data=file.raw(name))


@pytest.mark.parametrize("level", [1, 3])
@pytest.mark.parametrize("name", INPUTS)
def test_zstd_is_the_size_of_the_real_tool(name: str, level: int, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(INPUTS[name].tobytes())
    theirs = tool_output("zstd", f"-{level}", "--single-thread", data=path)
    version = subprocess.run(["zstd", "--version"], capture_output=True, check=True, text=True).stdout
    if ".".join(map(str, zstandard.ZSTD_VERSION)) in version:
        assert zstd_nbytes(INPUTS[name], level) == theirs
    else:
        assert zstd_nbytes(INPUTS[name], level) == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("name", INPUTS)
def test_sizes_are_of_streams_that_decode(name: str) -> None:
    data = INPUTS[name].tobytes()
    frame = zstandard.ZstdCompressor(level=3, write_checksum=True).compress(data)
    assert zstandard.ZstdDecompressor().decompress(frame) == data
    # One call and many pieces may cut blocks differently, not much.
    assert zstd_nbytes(INPUTS[name], 3) == pytest.approx(len(frame), rel=0.01, abs=8)


@pytest.mark.parametrize("piece", [977, 1 << 16])
@pytest.mark.parametrize("name", ["codes", "weights"])
def test_the_size_of_pieces_does_not_matter(name: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gzip_nbytes(INPUTS[name]), zstd_nbytes(INPUTS[name], 3)
    monkeypatch.setattr(baselines, "PIECE_NBYTES", piece)
    assert (gzip_nbytes(INPUTS[name]), zstd_nbytes(INPUTS[name], 3)) == whole


def test_a_read_only_view_is_taken() -> None:
    data = INPUTS["codes"][1:].view()
    data.flags.writeable = False
    assert gzip_nbytes(data) > 0 and zstd_nbytes(data, 1) > 0
