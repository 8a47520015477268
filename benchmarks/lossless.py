"""Lossless coding of floats beside other people's: ratio, encoding and decoding, one table from one interleaved run.

    python benchmarks/lossless.py MODEL.safetensors [--dtypes F32 BF16 F16 F8_E4M3] [--seconds 120]

The FP32 tensors of the model, as they are and cast, are coded by qzc tensor by tensor (choosing how to split them included,
writing a file not), and by the others as one buffer, which is how they do best. Decoding is into memory of its own, checksums
included for qzc; one thread each. New pages cost as much as decoding, and glibc's rules for giving memory back depend on what ran before:
`--memory fresh` makes every large array new, as when a model is loaded once; with `kept` the process keeps all it ever had;
`system` leaves it to glibc. All results are compared before anything is timed. `pip install 'qzc[bench]'` brings the rivals.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import zstandard
from numpy.typing import NDArray

from qzc.analysis.speed import take_turns
from qzc.codec.chunks import CHUNK_CODES
from qzc.codec.decoding import decode
from qzc.codec.pages import shared_pages
from qzc.formats.dtypes import file_bytes
from qzc.formats.profile import Profile
from qzc.formats.reader import Reader
from qzc.formats.safetensors import SafetensorsFile
from qzc.formats.writer import UncodedTensor, Writer
from qzc.lossless import encode_lossless, plan_lossless

DTYPES: dict[str, Any] = {
    "F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
}  # fmt: skip
ZIPNN = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F8_E4M3": "float8_e4m3fn"}
Codec = tuple[Callable[[NDArray[np.uint8]], Any], Callable[[Any], Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--seconds", type=float, default=120, help="for timing")
    parser.add_argument("--memory", choices=("fresh", "kept", "system"), default="fresh")
    options = parser.parse_args()
    if options.memory != "system":
        set_memory(options.memory == "kept")
    with SafetensorsFile(options.model) as file:
        weights = {name: file.array(name).copy() for name in file.keys() if file.info(name).dtype == "F32"}
    jobs: dict[tuple[str, str, str], tuple[Callable[[], object], ...]] = {}
    sizes: dict[tuple[str, str], int] = {}
    for dtype in options.dtypes:
        tensors = {name: file_bytes(array.astype(DTYPES[dtype])) for name, array in weights.items()}
        shapes = {name: array.shape for name, array in weights.items()}
        whole = np.concatenate(list(tensors.values()))
        sizes[dtype, "memcpy"] = whole.size
        jobs[dtype, "memcpy", "decode"] = (whole.copy,)
        nbytes, encode, read = ours(tensors, shapes, dtype)
        sizes[dtype, "qzc"] = nbytes
        jobs[dtype, "qzc", "encode"], jobs[dtype, "qzc", "decode"] = (encode,), (read,)
        for name, codec in rivals(dtype).items():
            payload = codec[0](whole.copy())
            if not np.array_equal(np.frombuffer(codec[1](payload), np.uint8), whole):
                raise SystemExit(f"{name} does not give back what it was given ({dtype})")
            sizes[dtype, name] = len(payload)
            jobs[dtype, name, "encode"] = (partial(codec[0], whole),)
            jobs[dtype, name, "decode"] = (partial(codec[1], payload),)
    race = take_turns(jobs, options.seconds)
    print(
        f"{options.model.name}, one thread, {options.memory} memory, {race.clock_ghz:.2f} GHz. Speeds: GB of the original per second, medians.\n"
    )
    print("| dtype | codec | ratio | encode GB/s | x zipnn | decode GB/s | x zipnn |\n|---|---|---|---|---|---|---|")
    for (dtype, name), nbytes in sizes.items():
        total, cells = sizes[dtype, "memcpy"], []
        for what in ("encode", "decode"):
            timing, rival = race.timings.get((dtype, name, what)), race.timings.get((dtype, "zipnn", what))
            cells.append(f"{total / timing.median / 1e9:.2f}" if timing else "")
            cells.append(f"{rival.median / timing.median:.2f}" if timing and rival else "")
        print(f"| {dtype} | {name} | {total / nbytes:.4f} | {' | '.join(cells)} |")


def ours(
    tensors: dict[str, NDArray[np.uint8]], shapes: dict[str, tuple[int, ...]], dtype: str
) -> tuple[int, Callable[[], object], Callable[[], object]]:
    """Bytes of a file with these tensors, what encodes them, and what decodes them from such a file."""

    def encode() -> dict[str, Any]:
        coded = {}
        with shared_pages():
            for name, raw in tensors.items():
                plan = plan_lossless(raw, dtype)
                if plan:
                    coded[name] = plan, encode_lossless(raw, plan, "ans", CHUNK_CODES, verify=False)[0]
        return coded

    coded = encode()
    entries = {name: plan.entry(dtype, shapes[name], tensors[name].size) for name, (plan, _) in coded.items()}
    uncoded = {n: UncodedTensor(dtype, shapes[n], raw.size) for n, raw in tensors.items() if n not in coded}
    stream = io.BytesIO()
    writer = Writer(stream, Profile(entries, {}, None, "a benchmark"), uncoded)
    for name in writer.names:
        if name in uncoded:
            writer.write_uncoded(name, [tensors[name]])
        else:
            writer.write_lossless(name, coded[name][1])
    writer.finish()
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    path = Path(folder.name) / "model.qzc"
    path.write_bytes(stream.getvalue())
    reader = Reader(path)

    def load() -> list[Any]:
        assert folder  # the file is there as long as this function
        return decode(reader.array_decoding(name) for name in tensors)

    for name, found in zip(tensors, load(), strict=True):
        if not np.array_equal(file_bytes(found), tensors[name]):
            raise SystemExit(f"qzc does not give back {name}")
    return len(stream.getvalue()), encode, load


def set_memory(kept: bool) -> None:
    """Tell glibc, where it is, to give nothing back to the system, or everything of 128 KB and more."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4
    mallopt(trim_threshold, 2**31 - 1 if kept else 1 << 17)
    mallopt(mmap_max, 0) if kept else mallopt(mmap_threshold, 1 << 17)


def rivals(dtype: str) -> dict[str, Codec]:
    compressor, decompressor = zstandard.ZstdCompressor(level=3), zstandard.ZstdDecompressor()
    found: dict[str, Codec] = {"zstd -3": (lambda data: compressor.compress(data.data), decompressor.decompress)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from zipnn import ZipNN  # pyright: ignore[reportMissingImports]
        except ImportError:
            return found
    codec = ZipNN(input_format="byte", bytearray_dtype=ZIPNN[dtype], threads=1)
    # It changes the buffer that it is given.
    found["zipnn"] = (lambda data: codec.compress(memoryview(data.copy())), codec.decompress)
    try:
        from pcodec import ChunkConfig, standalone  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
    except ImportError:
        return found
    if dtype != "F8_E4M3":
        number = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[dtype]
        config = ChunkConfig(compression_level=8)
        found["pcodec"] = (
            lambda data: standalone.simple_compress(data.view(number), config),
            lambda payload: standalone.simple_decompress(payload).view(np.uint8),
        )
    return found


if __name__ == "__main__":
    main()
