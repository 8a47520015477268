"""Seconds and peak memory of `qzc stats` and `qzc report`, and how that compares with reading the file and gzip alone.

    python benchmarks/stats.py MODEL.safetensors [--rounds 3] [--no-large] [--json out.json]

Every command runs in a process of its own, kernels compiled and the file in the page cache; the figure is the median of
`--rounds` rounds in which all take turns. The last two measure a synthetic checkpoint with the 291 tensors of Llama-2-7B in
FP16 (13.5 GB, sparse: only what is sampled has weights), once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from qzc.analysis.baselines import gzip_nbytes
from qzc.sources import open_source
from qzc.statistics.deep_sample import SAMPLE_WEIGHTS, row_blocks
from qzc.statistics.measure import stats
from qzc.threads import thread_map

RUN = "import resource, sys; from qzc.cli.main import run; code = run(sys.argv[1:]); "
RUN += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"
GZIP = """
import resource, sys
from pathlib import Path
from qzc.analysis.baselines import gzip_nbytes
from qzc.sources import open_source
from qzc.threads import thread_map
with open_source(Path(sys.argv[1])) as file, thread_map(0) as run:
    names = sorted(file.keys(), key=lambda name: -file.info(name).nbytes)
    sum(run(lambda name: gzip_nbytes(file.raw(name)), names))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""
FULL = ["--bits", "2-8", "--sections", "all", "--json"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-large", action="store_true", help="leave out the synthetic checkpoint")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = str(options.model)
    with tempfile.TemporaryDirectory(prefix="qzc-bench-") as name:
        folder = Path(name)
        page = str(folder / "report.html")
        commands = {
            "reading and gzip -6 alone": [GZIP, model],
            "stats": [RUN, "stats", model],
            "stats --no-gzip": [RUN, "stats", model, "--no-gzip"],
            "stats --bits 2-8 --no-gzip": [RUN, "stats", model, "--bits", "2-8", "--no-gzip"],
            "stats --bits 2-8 --sections all": [RUN, "stats", model, *FULL],
            "report": [RUN, "report", model, "-q", "-f", "-o", page],
        }
        figures = take_turns(commands, options.rounds)
        alone, both = inside(options.model, options.rounds)
        if not options.no_large:
            large = folder / "large.safetensors"
            write_large(large)
            for title, more in (("7B: all, sampled, --no-gzip", ["--no-gzip"]), ("7B: all, sampled", [])):
                figures[title] = timed([RUN, "stats", str(large), *FULL, *more])
    show(figures)
    print(
        f"Without starting Python: {both:.2f} s, {both / alone:.2f} times as long as reading the file and gzip alone."
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def take_turns(commands: dict[str, list[str]], rounds: int) -> dict[str, dict[str, float]]:
    times: dict[str, list[dict[str, float]]] = {title: [] for title in commands}
    for number in range(rounds + 1):
        for title, command in commands.items():
            if number or command[0] == RUN:
                found = timed(command)
                if number:  # the first round warms up
                    times[title].append(found)
    return {
        title: {key: statistics.median(one[key] for one in each) for key in ("seconds", "peak_nbytes")}
        for title, each in times.items()
    }


def inside(model: Path, rounds: int) -> tuple[float, float]:
    """Median seconds of reading and gzip alone and of `stats`, in turns, in this process."""

    def gzip_alone() -> None:
        with open_source(model) as file, thread_map(0) as run:
            names = sorted(file.keys(), key=lambda name: -file.info(name).nbytes)
            sum(run(lambda name: gzip_nbytes(file.raw(name)), names))

    stats(model, gzip=False)
    calls: tuple[Callable[[], object], ...] = (gzip_alone, lambda: stats(model))
    times: tuple[list[float], ...] = ([], [])
    for _ in range(rounds):
        for call, found in zip(calls, times, strict=True):
            began = time.perf_counter()
            call()
            found.append(time.perf_counter() - began)
    return statistics.median(times[0]), statistics.median(times[1])


def timed(command: Sequence[str]) -> dict[str, float]:
    """A script for Python and its arguments; its last word on stderr is its peak memory."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    seconds = time.perf_counter() - began
    peak = float(done.stderr.split()[-1]) * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": seconds, "peak_nbytes": peak}


def large_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (32000, 4096), "lm_head.weight": (32000, 4096)}
    shapes["norm.weight"] = (4096,)
    for i in range(32):
        shapes |= {f"layers.{i}.attn.{p}_proj.weight": (4096, 4096) for p in "qkvo"}
        shapes |= {f"layers.{i}.mlp.{p}.weight": (11008, 4096) for p in ("gate", "up")}
        shapes[f"layers.{i}.mlp.down.weight"] = (4096, 11008)
        shapes |= {f"layers.{i}.{p}_norm.weight": (4096,) for p in ("in", "post")}
    return shapes


def write_large(path: Path) -> None:
    """Gaussian noise in the rows that a sample takes, nothing elsewhere."""
    header: dict[str, Any] = {}
    at = 0
    for name, shape in large_shapes().items():
        nbytes = 2 * prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header).encode()
    noise = np.random.default_rng(0).normal(0, 0.02, SAMPLE_WEIGHTS + 4096).astype(np.float16)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        file.truncate(start + at)
        for number, (name, shape) in enumerate(large_shapes().items()):
            begin, columns = start + header[name]["data_offsets"][0], shape[-1]
            rows = prod(shape) // columns
            for first, stop in row_blocks(rows, min(rows, SAMPLE_WEIGHTS // columns)):
                file.seek(begin + 2 * first * columns)
                file.write(np.roll(noise, 97 * number)[: (stop - first) * columns].tobytes())


def show(figures: dict[str, dict[str, float]]) -> None:
    print("| command | seconds | peak MB |\n|---|---:|---:|")
    for title, found in figures.items():
        print(f"| {title} | {found['seconds']:.1f} | {found['peak_nbytes'] / 1e6:.0f} |")
    ratio = figures["stats"]["seconds"] / figures["reading and gzip -6 alone"]["seconds"]
    print(f"\nstats takes {ratio:.2f} times as long as reading the file and gzip alone.")


if __name__ == "__main__":
    main()
