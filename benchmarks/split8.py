"""What decided how `ans` codes bytes: ans256, split8 and huffman beside each other, on 5- to 8-bit codes of a real model.

    python benchmarks/split8.py MODEL.safetensors [--seconds 60] [--codes 4194304]

A sample in chunks of 256K codes, each with a table of its own. "size" is payload + table + index row over the entropy of
the chunk's codes; speeds are of the bare coders on one thread, best of interleaved rounds, after a check of every byte.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qzc.analysis.speed import take_turns
from qzc.codec.ans import ANS256
from qzc.codec.chunks import CHUNK_DTYPE
from qzc.codec.coder import Coder
from qzc.codec.histogram import byte_counts
from qzc.codec.huffman import HUFFMAN
from qzc.codec.kernels.select import batch_kernels
from qzc.codec.split8 import SPLIT8
from qzc.codec.task import TASK
from qzc.quantize.select import BitsRule, Selection
from qzc.sampling import Sample, take_sample

CODERS: tuple[Coder, ...] = (ANS256, SPLIT8, HUFFMAN)
WAYS = ("decode", "encode")


class Job:
    """One coder on one sample. nbytes: all in."""

    def __init__(self, coder: Coder, sample: Sample) -> None:
        self.coder, self.nbytes = coder, 0
        self.buffers = [block.packed for block in sample.blocks]
        self.tables = [coder.fit(byte_counts(buffer)) for buffer in self.buffers]
        self.tasks, self.status = np.zeros(len(self.buffers), TASK), np.zeros(len(self.buffers), np.int64)
        self.alive: list[NDArray[Any]] = []  # what the tasks point into
        outs = []
        for i, (buffer, table) in enumerate(zip(self.buffers, self.tables, strict=True)):
            assert table is not None
            payload = self.payload(i)
            bank, out = coder.parse_bank(table.to_bytes()), np.zeros_like(buffer)
            streams = coder.default_streams(buffer.size)
            places = payload.ctypes.data, payload.size, streams, bank.ctypes.data, out.ctypes.data, out.size
            self.tasks[i] = *places, *6 * (0,)
            self.alive += [payload, bank, out]
            outs.append(out)
            self.nbytes += payload.size + coder.table_nbytes + CHUNK_DTYPE.itemsize
        self.decode()
        assert not self.status.any() and all(map(np.array_equal, outs, self.buffers))

    def payload(self, i: int) -> NDArray[np.uint8]:
        return self.coder.encode(self.buffers[i], self.tables[i], self.coder.default_streams(self.buffers[i].size))

    def encode(self) -> None:
        for i in range(len(self.buffers)):
            self.payload(i)  # and away: fresh memory for all would be most of the time

    def decode(self) -> None:
        batch_kernels()[self.coder.id](self.tasks, self.status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=60, help="for timing")
    parser.add_argument("--codes", type=int, default=1 << 22, help="size of the sample for each grid, about")
    options = parser.parse_args()
    print("| codes | coder | size | decode GB/s | cycles/byte | encode GB/s | cycles/byte |")
    print("|---|---|---|---|---|---|---|")
    clocks = []
    for bits in (8, 7, 6, 5):
        for strategy in ("channel", "group"):
            selection = Selection((BitsRule("*", bits),), strategy=strategy)
            sample = take_sample(options.model, selection, sample_codes=options.codes)
            jobs = {coder.name: Job(coder, sample) for coder in CODERS}
            turns = {(name, what): (partial(getattr(job, what)),) for name, job in jobs.items() for what in WAYS}
            race = take_turns(turns, options.seconds / 8)
            clocks.append(race.clock_ghz)
            for name, job in jobs.items():
                title = f"{bits}-bit {strategy}, H0 {sample.entropy_bits:.4f}" if job is jobs["ans256"] else ""
                size = f"{100 * (8 * job.nbytes / sample.codes / sample.entropy_bits - 1):+.2f} %"
                cells = []
                for what in WAYS:
                    speed = sample.codes / race.timings[name, what].best / 1e9
                    cells += [f"{speed:.2f}", f"{race.clock_ghz / speed:.2f}"]
                print(f"| {' | '.join([title, name, size, *cells])} |", flush=True)
    print(f"\n{options.model.name}, about {options.codes:,} codes of each; {max(clocks):.2f} GHz")


if __name__ == "__main__":
    main()
