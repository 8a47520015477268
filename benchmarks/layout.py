"""What decided the layout of `ans`: chunk size against number of streams, in bytes and in decoding speed.

    python benchmarks/layout.py MODEL.safetensors [--seconds 20] [--grid channel|group]

All 4-bit codes of the model are cut into chunks of each size, and each chunk is coded in 1 to 8 streams of 32 lanes, with
one table per chunk. "size" is payload + table + index row over the entropy of the codes per tensor; "cycles" is one thread
decoding all chunks to packed bytes in one kernel call, median of interleaved rounds, after a check of every byte.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qzc
from qzc.analysis.entropy import shannon_entropy
from qzc.analysis.speed import take_turns
from qzc.codec.ans import ANS16
from qzc.codec.chunks import CHUNK_DTYPE, plan_chunks
from qzc.codec.histogram import byte_counts, code_counts
from qzc.codec.kernels.select import batch_kernels
from qzc.codec.task import TASK
from qzc.codec.tensor import Strategy, packed_nbytes
from qzc.quantize.select import Selection

CHUNK_CODES = (1 << 16, 1 << 17, 1 << 18, 1 << 19)
STREAMS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Layout:
    """One combination, ready to be decoded: tasks, the arrays that they point into, and bytes all in."""

    tasks: NDArray[Any]
    alive: list[Any]
    nbytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--grid", choices=("channel", "group"), default="group")
    options = parser.parse_args()
    tensors = quantized(options.model, options.grid)
    codes = sum(count for _, count in tensors)
    entropy = sum(count * shannon_entropy(code_counts(packed, count, 4)) for packed, count in tensors) / 8
    layouts = {(size, streams): build(tensors, size, streams) for size in CHUNK_CODES for streams in STREAMS}
    decode, status = batch_kernels()[ANS16.id], np.zeros(max(len(x.tasks) for x in layouts.values()), np.int64)
    race = take_turns(
        {key: (partial(decode, layout.tasks, status),) for key, layout in layouts.items()}, options.seconds
    )
    assert not status.any()
    clock = race.clock_ghz
    print(
        f"{options.model.name}, {options.grid}: {codes:,} codes, H0 {8 * entropy / codes:.4f} bits/code, {clock:.2f} GHz\n"
    )
    print(f"| codes per chunk | {' | '.join(f'{s} stream{chr(115) * (s > 1)}' for s in STREAMS)} |")
    print(f"|---|{'---|' * len(STREAMS)}")
    for size in CHUNK_CODES:
        cells = []
        for streams in STREAMS:
            seconds = race.timings[size, streams].median
            over = 100 * (layouts[size, streams].nbytes / entropy - 1)
            cells.append(f"{over:+.2f} %, {seconds * clock * 1e9 / codes:.2f} cycles/code")
        print(f"| {size >> 10}K | {' | '.join(cells)} |")


def quantized(model: Path, strategy: Strategy) -> list[tuple[NDArray[np.uint8], int]]:
    """Packed 4-bit codes of every tensor that `pack` quantizes, and their number."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.qzc"
        qzc.pack(model, path, qzc.PackOptions(Selection(strategy=strategy), coder="raw", verify=False))
        tensors = [t for t in qzc.load_file(path).values() if isinstance(t, qzc.QuantizedTensor)]
    return [(tensor.packed, prod(tensor.shape)) for tensor in tensors]


def build(tensors: list[tuple[NDArray[np.uint8], int]], chunk_codes: int, streams: int) -> Layout:
    rows: list[tuple[int, ...]] = []
    alive: list[Any] = []
    nbytes = 0
    for packed, count in tensors:
        for start, stop in plan_chunks(count, 4, chunk_codes):
            buffer = packed[start // 2 : packed_nbytes(stop, 4)]
            table = ANS16.fit(byte_counts(buffer))
            payload = ANS16.encode(buffer, table, streams)
            out, bank = np.zeros(len(buffer), np.uint8), ANS16.parse_bank(table.to_bytes())
            ANS16.decode(payload, table, out, streams)
            assert np.array_equal(out, buffer)
            out[:] = 0
            place = payload.ctypes.data, payload.size, streams, bank.ctypes.data, out.ctypes.data, out.size
            rows.append((*place, *6 * (0,)))
            alive.append((payload, bank, out))
            nbytes += payload.size + ANS16.table_nbytes + CHUNK_DTYPE.itemsize
    return Layout(np.array(rows, TASK), alive, nbytes)


if __name__ == "__main__":
    main()
