"""The figures that the coders promise, in one table: kernels alone and all in, both sets of kernels, compiling and starting.

    python benchmarks/figures.py MODEL.safetensors [--seconds 60]

Speeds are those of one interleaved run (portable kernels: of another), medians and best; cycles and "x zstd", beside
`zstd -1` on the same packed codes, are of the best. "dealt" is the kernel alone, each thread with chunks of its own: what
more threads gain on this machine at that moment.
A long run is one tensor of about 4M codes, as `pack` codes it; other rows take chunks of 256K codes from all over the model.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

import qzc
from qzc.analysis.rivals import RIVALS, installed
from qzc.analysis.speed import take_turns
from qzc.codec.ans import ANS16, encoded_bound
from qzc.codec.buffers import read_only
from qzc.codec.chunks import encode_run
from qzc.codec.histogram import byte_counts
from qzc.codec.kernels.select import ans_kernels, batch_kernels
from qzc.codec.run_map import RunMap
from qzc.codec.task import TASK
from qzc.contenders import Contender, Crew, our_contenders, rival_contender
from qzc.quantize.select import BitsRule, Selection
from qzc.sampling import Sample, take_sample
from qzc.threads import thread_map

Job = Callable[[], object]
ZSTD = "zstd-1-packed"
LONG = 1 << 22  # codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=60, help="for timing; compiling comes on top")
    parser.add_argument("--json", action="store_true", help="only speeds, for the other set of kernels")
    options = parser.parse_args()
    if options.json:
        print(json.dumps(measure(options.model, options.seconds, whole=False)))
    else:
        for line in figures(options.model, options.seconds):
            print(line, flush=True)


def figures(model: Path, seconds: float) -> Iterator[str]:
    """The table in Markdown, line by line."""
    speeds = measure(model, 0.8 * seconds)
    yield f"{model.name}, {speeds['clock_ghz']:.2f} GHz. Portable kernels: the last column, at their own clock.\n"
    environment = {**os.environ, "QZC_KERNELS": "portable"}
    portable = json.loads(_python(environment, __file__, str(model), "--json", "--seconds", str(0.2 * seconds)))
    yield "| what | G codes/s, median (best) | cycles/code | x zstd | portable, best |"
    yield "|---|---|---|---|---|"
    for name, row in speeds["rows"].items():
        other = portable["rows"].get(name)
        ratio = f"{row['x_zstd']:.2f}" if row["x_zstd"] else ""
        cycles = speeds["clock_ghz"] * 1e9 / row["speed"]
        twin = f"{other['speed'] / 1e9:.2f}" if other and "zstd" not in name else ""
        speed = f"{row['median'] / 1e9:.2f} ({row['speed'] / 1e9:.2f})"
        yield f"| {name} | {speed} | {cycles:.2f} | {ratio} | {twin} |"
    rows = speeds["rows"]
    yield ""
    for name, of in (
        ("4-bit ans to float16", "4-bit ans decode"),
        ("whole model, 2 threads", "whole model, 1 thread"),
        ("whole model, 2 threads, dealt", "whole model, 1 thread, dealt"),
    ):
        yield f"- {name}: {rows[name]['speed'] / rows[of]['speed']:.2f} x {of}"
    yield from start(model)


# ---------------------------------------------------------------------------------------------- speeds
def measure(model: Path, seconds: float, whole: bool = True) -> dict[str, Any]:
    """{"clock_ghz": .., "rows": name -> {"speed": best codes/s, "median": .., "x_zstd": ratio or None}}.

    whole: decode all of the model, too.
    """
    jobs: dict[str, tuple[Job, ...]] = {}
    codes: dict[str, int] = {}
    with ExitStack() as stack:
        for bits in (4, 2, 8):
            selection = Selection((BitsRule("*", bits),), strategy="group")
            sample = take_sample(model, selection)
            long = take_sample(model, selection, sample_codes=LONG, chunk_codes=LONG)
            for name, job in _jobs(sample, long).items():
                jobs[f"{bits}-bit {name}"] = (job,)
                codes[f"{bits}-bit {name}"] = long.codes if "long" in name else sample.codes
            if whole and bits == 4:
                everything = take_sample(model, selection, sample_codes=1 << 28)
                ans = next(c for c in our_contenders(everything) if c.name == "ans")
                for threads in (1, 2):
                    crew = Crew([range(len(everything.blocks))], stack.enter_context(thread_map(threads)))
                    name = f"whole model, {threads} thread{'s' * (threads > 1)}"
                    jobs[name], codes[name] = _decode(ans)(crew), everything.codes
                    dealt = _kernels(everything, threads, crew.run)["ans decode, kernel"]
                    jobs[f"{name}, dealt"], codes[f"{name}, dealt"] = (dealt,), everything.codes
        race = take_turns(jobs, seconds)
    best = {name: codes[name] / race.timings[name].best for name in jobs}
    rows = {
        name: {"speed": speed, "median": codes[name] / race.timings[name].median, "x_zstd": _ratio(name, best)}
        for name, speed in best.items()
    }
    return {"clock_ghz": race.clock_ghz, "rows": rows}


def _ratio(name: str, speeds: dict[str, float]) -> float | None:
    bits, _, what = name.partition(" ")
    zstd = speeds.get(f"{bits} zstd {'encode' if 'encode' in what else 'decode'}")
    return speeds[name] / zstd if zstd and "zstd" not in what else None


def _jobs(sample: Sample, long: Sample) -> dict[str, Job]:
    """By what it is; all decode or encode the whole sample, or the long one."""
    ours = {contender.name: contender for contender in our_contenders(sample)}
    crew = Crew([range(len(sample.blocks))], map)
    jobs: dict[str, Job] = {
        "ans decode": _decode(ours["ans"])(crew)[0],
        "ans to float16": _decode(ours["ans-float16"])(crew)[0],
        "huffman decode": _decode(ours["huffman"])(crew)[0],
        "ans encode, chunk by chunk": partial(_encode, sample),
        "ans encode, a long run": partial(_encode, long),
    }
    if sample.blocks[0].args.storage_bits < 8:
        jobs |= _kernels(sample)
    for rival in installed(RIVALS)[0]:
        if rival.name == ZSTD:
            zstd = rival_contender(rival, sample)
            assert zstd.encode
            jobs["zstd decode"], jobs["zstd encode"] = _decode(zstd)(crew)[0], zstd.encode(crew)[0]
    return jobs


def _decode(contender: Contender) -> Callable[[Crew], tuple[Job, ...]]:
    assert contender.decode
    return contender.decode


def _encode(sample: Sample) -> None:
    for block in sample.blocks:
        encode_run(block.packed, prod(block.shape), block.args.storage_bits, "ans", verify=False)


def _kernels(sample: Sample, threads: int = 1, run: RunMap = map) -> dict[str, Job]:
    """The kernels of coder 2 alone: tables are fitted, memory is there, and chunks are dealt to the threads that `run` has."""
    buffers = [read_only(block.packed) for block in sample.blocks]
    streams = [ANS16.default_streams(prod(block.shape)) for block in sample.blocks]
    tables = [ANS16.fit(byte_counts(buffer)).frequencies for buffer in buffers]
    memory = np.empty(max(map(encoded_bound, map(len, buffers), streams)), np.uint8)
    encode_one, decode_all = ans_kernels().encode_ans16, batch_kernels()[ANS16.id]
    tasks, status = np.zeros(len(buffers), TASK), [np.zeros(len(buffers[k::threads]), np.int64) for k in range(threads)]
    payloads, outs = [], [np.zeros_like(buffer) for buffer in buffers]
    for i, (buffer, table, out) in enumerate(zip(buffers, tables, outs, strict=True)):
        payloads.append(memory[memory.size - encode_one(buffer, streams[i], table, memory) :].copy())
        place = payloads[-1].ctypes.data, payloads[-1].size, streams[i], table.ctypes.data, out.ctypes.data, out.size
        tasks[i] = *place, *6 * (0,)

    def encode() -> None:
        for buffer, s, table in zip(buffers, streams, tables, strict=True):
            encode_one(buffer, s, table, memory)

    shares = [tasks[k::threads].copy() for k in range(threads)]

    def decode(alive: object = (payloads, tables, outs)) -> None:
        for _ in run(lambda k: decode_all(shares[k], status[k]), range(threads)):
            pass

    decode()
    assert not any(map(np.any, status)) and all(map(np.array_equal, outs, buffers))
    return {"ans decode, kernel": decode, "ans encode, kernel": encode}


# ---------------------------------------------------------------------------------------------- compiling and starting
PACK_AND_LOAD = """
import sys, qzc
qzc.pack(sys.argv[1], sys.argv[2], qzc.PackOptions(overwrite=True))
qzc.load_file(sys.argv[2])
"""
LOAD = "import sys, qzc; qzc.load_file(sys.argv[2])"


def start(model: Path) -> Iterator[str]:
    """Seconds of processes with an empty cache of compiled kernels and with a full one."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed has its byte code: the first run makes it
        packed = str(Path(folder) / "model.qzc")
        _python(
            {**environment, "NUMBA_CACHE_DIR": str(Path(folder) / "other")}, "-c", PACK_AND_LOAD, str(model), packed
        )
        titles = ("pack and load, empty cache", "the same, full cache", "load, full cache")
        for title, code in zip(titles, (PACK_AND_LOAD, PACK_AND_LOAD, LOAD), strict=True):
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            _python(environment, "-c", code, str(model), packed)
            wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            yield f"- {title}: {wall:.2f} s, {cpu:.2f} s of CPU"


def _python(environment: dict[str, str], *arguments: str) -> str:
    root = str(Path(qzc.__file__).parent.parent)
    paths = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env={**environment, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


if __name__ == "__main__":
    main()
