"""Bytes of few likely values: escape16 beside ans256, split8, huffman and zstd, on exponents and coarse codes of a real model.

    python benchmarks/escape16.py MODEL.safetensors [--seconds 60] [--chunks 16]

Exponents are the high bytes of the weights as BF16, rotated left by one bit; codes are weights rounded to a multiple of a
share of their standard deviation in the chunk. Chunks of 256K bytes, each with a table of its own. "size" is payload + table
+ index row over the entropy of the chunk; encoding is counting, fitting the table and encoding. One thread, best of interleaved
rounds, after a check of every byte; "x" is how many times the speed of ans256.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import zstandard
from numpy.typing import NDArray

from qzc.analysis.speed import Timing, take_turns
from qzc.codec.ans import ANS256
from qzc.codec.chunks import CHUNK_DTYPE
from qzc.codec.coder import Coder
from qzc.codec.escape16 import ESCAPE16
from qzc.codec.escape_run import run_counts
from qzc.codec.histogram import byte_counts
from qzc.codec.huffman import HUFFMAN
from qzc.codec.kernels.select import batch_kernels
from qzc.codec.split8 import SPLIT8
from qzc.codec.task import TASK
from qzc.formats.safetensors import SafetensorsFile

Bytes = NDArray[np.uint8]
CODERS: tuple[Coder, ...] = (ANS256, ESCAPE16, SPLIT8, HUFFMAN)
CHUNK = 1 << 18
STEPS = (0.3, 0.5, 1.0)  # of the grids, in standard deviations


class Job:
    """One coder on all chunks. nbytes: all in."""

    def __init__(self, coder: Coder, chunks: list[Bytes]) -> None:
        self.coder, self.chunks = coder, chunks
        self.tasks, self.status = np.zeros(len(chunks), TASK), np.zeros(len(chunks), np.int64)
        self.alive: list[NDArray[Any]] = []  # what the tasks point into
        streams, outs = coder.default_streams(CHUNK), [np.zeros_like(chunk) for chunk in chunks]
        self.nbytes = len(chunks) * (coder.table_nbytes + CHUNK_DTYPE.itemsize)
        for task, chunk, out in zip(self.tasks, chunks, outs, strict=True):
            table = coder.fit(byte_counts(chunk))
            assert table is not None
            payload, bank = coder.encode(chunk, table, streams), coder.parse_bank(table.to_bytes())
            task["payload"], task["nbytes"], task["streams"] = payload.ctypes.data, payload.size, streams
            task["table"], task["out"], task["size"] = bank.ctypes.data, out.ctypes.data, out.size
            self.alive += [payload, bank, out]
            self.nbytes += payload.size
        self.decode()
        assert not self.status.any() and all(map(np.array_equal, outs, chunks))

    def encode(self) -> None:
        for chunk in self.chunks:
            self.coder.encode_fitted(chunk, self.coder.fit(counts_of(chunk)), self.coder.default_streams(CHUNK))

    def decode(self) -> None:
        batch_kernels()[self.coder.id](self.tasks, self.status)


def counts_of(chunk: NDArray[np.uint8]) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = run_counts(chunk, np.array([0, chunk.size]), map)[0]
    return counts


class ZstdJob:
    """The same of zstd -1."""

    def __init__(self, chunks: list[Bytes]) -> None:
        self.chunks = chunks
        self.compressor, self.decompressor = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
        self.payloads = [self.compressor.compress(chunk.data) for chunk in chunks]
        self.nbytes = sum(map(len, self.payloads)) + len(chunks) * CHUNK_DTYPE.itemsize
        for payload, chunk in zip(self.payloads, chunks, strict=True):
            assert self.decompressor.decompress(payload) == chunk.tobytes()

    def encode(self) -> None:
        for chunk in self.chunks:
            self.compressor.compress(chunk.data)

    def decode(self) -> None:
        for payload in self.payloads:
            self.decompressor.decompress(payload)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=60, help="for timing")
    parser.add_argument("--chunks", type=int, default=16, help="how many of each kind, evenly spread over the model")
    options = parser.parse_args()
    weights = sample(options.model, options.chunks)
    kinds = {"exponents": [exponents(chunk) for chunk in weights]}
    kinds |= {f"codes, step {step}": [codes(chunk, step) for chunk in weights] for step in STEPS}
    print("| bytes | coder | bits/byte | size | decode GB/s | cycles/byte | x | encode GB/s | cycles/byte | x |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    clocks = []
    for title, chunks in kinds.items():
        jobs: dict[str, Job | ZstdJob] = {coder.name: Job(coder, chunks) for coder in CODERS}
        jobs["zstd -1"] = ZstdJob(chunks)
        turns: dict[tuple[str, str], tuple[Callable[[], object], ...]] = {}
        for name, job in jobs.items():
            turns |= {(name, "decode"): (job.decode,), (name, "encode"): (job.encode,)}
        race = take_turns(turns, options.seconds / len(kinds))
        clocks.append(race.clock_ghz)
        nbytes, entropy = CHUNK * len(chunks), sum(map(entropy_bits, chunks)) / 8
        for name, job in jobs.items():
            cells = [f"{8 * job.nbytes / nbytes:.4f}", f"{100 * (job.nbytes / entropy - 1):+.2f} %"]
            for way in ("decode", "encode"):
                mine, theirs = race.timings[name, way], race.timings["ans256", way]
                cells += speeds(mine, theirs, nbytes, race.clock_ghz)
            head = f"{title}, H0 {8 * entropy / nbytes:.4f}" if name == "ans256" else ""
            print(f"| {' | '.join([head, name, *cells])} |", flush=True)
    print(f"\n{options.model.name}, {options.chunks} chunks of {CHUNK:,} bytes of each kind; {max(clocks):.2f} GHz")


def sample(model: Path, chunks: int) -> list[NDArray[np.float32]]:
    """Weights of matrices, float32 `[CHUNK]` each."""
    found = []
    with SafetensorsFile(model) as file:
        for name in file.keys():
            array = file.array(name)
            if array.ndim == 2 and array.dtype.kind in "fV":
                flat = array.reshape(-1)
                found += [flat[at : at + CHUNK].astype(np.float32) for at in range(0, flat.size - CHUNK + 1, CHUNK)]
    return [found[len(found) * i // chunks] for i in range(min(chunks, len(found)))]


def exponents(weights: NDArray[np.float32]) -> Bytes:
    words = weights.astype(ml_dtypes.bfloat16).view(np.uint16)
    return ((words << 1 | words >> 15) >> 8).astype(np.uint8)


def codes(weights: NDArray[np.float32], step: float) -> Bytes:
    found: Bytes = (np.clip(np.rint(weights / (step * weights.std())), -128, 127) + 128).astype(np.uint8)
    return found


def entropy_bits(chunk: Bytes) -> float:
    counts = np.bincount(chunk).astype(np.float64)
    counts = counts[counts > 0]
    return float((counts * np.log2(chunk.size / counts)).sum())


def speeds(mine: Timing, theirs: Timing, nbytes: int, clock_ghz: float) -> list[str]:
    speed = nbytes / mine.best / 1e9
    return [f"{speed:.2f}", f"{clock_ghz / speed:.2f}", f"{theirs.best / mine.best:.2f}"]


if __name__ == "__main__":
    main()
