"""File size, pack and load time, peak memory and start-up of qzc on a real model, beside what users have today.

    python benchmarks/end_to_end.py MODEL.safetensors [--rounds 7] [--no-memory] [--json out.json]

Every time is the median of `--rounds` rounds in which all candidates take turns, after one round that is not counted, and
after checking that what was written decodes. "warm" means: file in the page cache, kernels compiled. The memory figure
packs synthetic checkpoints of 2 GB in fresh processes. Ratios are what counts: machines differ and are shared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import zstandard
from numpy.typing import NDArray

import qzc
from qzc.calibration import COUNTS, FORMAT, VERSION, fingerprint

GRIDS: dict[str, qzc.Selection] = {
    "4-bit channel absmax": qzc.Selection(strategy="channel"),
    "4-bit default (group 128, mse)": qzc.Selection(),
    "4-bit group 128, asymmetric absmax": qzc.Selection(strategy="group", symmetric=False, scale="absmax"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-memory", action="store_true", help="leave out the 2 GB checkpoint")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qzc-bench-") as name:
        figures: dict[str, Any] = {"machine": machine(), "model": options.model.name}
        figures["sizes"] = sizes(options.model, Path(name))
        figures["seconds"] = seconds(options.model, Path(name), options.rounds)
        figures["start_up_seconds"] = start_up(Path(name), options.rounds)
        if not options.no_memory:
            figures["memory"] = memory(Path(name))
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def sizes(model: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Bytes of the whole file, its parts, and bits per quantized weight, for each grid; every file is verified."""
    found: dict[str, dict[str, float]] = {}
    for title, selection in GRIDS.items():
        output = folder / f"{len(found)}.qzc"
        report = qzc.pack(model, output, qzc.PackOptions(selection=selection))
        comparisons = qzc.verify(output, model).comparisons
        assert all(c.exact for c in comparisons)
        layout = report.files[0].layout
        parts: dict[str, float] = {"file": report.nbytes, "bits_per_weight": report.bits_per_weight}
        for part in ("payload", "index"):
            parts[part] = sum(p.get(part, 0) for p in layout.coded.values())
        parts |= {"uncoded": sum(layout.uncoded.values()), "header": layout.header, "tables": layout.tables}
        found[title] = parts
    return found


def seconds(model: Path, folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of packing and loading, taking turns with loading the FP32 file and packed int4 from safetensors."""
    packed_file, channel, default = folder / "packed.safetensors", folder / "0.qzc", folder / "1.qzc"
    qzc.unpack(channel, packed_file, format="packed")
    zstd_file = folder / "packed.zst"
    zstd_file.write_bytes(zstandard.ZstdCompressor(level=1).compress(packed_file.read_bytes()))
    out = folder / "out.qzc"
    options = {t: qzc.PackOptions(selection=s, overwrite=True) for t, s in GRIDS.items()}
    candidates: dict[str, Callable[[], Any]] = {
        "pack, 4-bit channel absmax": lambda: qzc.pack(model, out, options["4-bit channel absmax"]),
        "pack, 4-bit default": lambda: qzc.pack(model, out, options["4-bit default (group 128, mse)"]),
        "load_file to packed ints, channel": lambda: qzc.load_file(channel),
        "load_file to packed ints, channel, 1 thread": lambda: qzc.load_file(channel, threads=1),
        "load_file to packed ints, default": lambda: qzc.load_file(default),
        "load_file to float16, default": lambda: qzc.load_file(default, np.float16),
        "safetensors load_file of the FP32 original": lambda: safetensors.numpy.load_file(model),
        "safetensors load_file of packed int4": lambda: safetensors.numpy.load_file(packed_file),
        "zstd -1 of packed int4, decompressed": lambda: zstandard.ZstdDecompressor().decompress(zstd_file.read_bytes()),
    }
    return take_turns(candidates, rounds)


def start_up(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Median wall seconds of whole processes."""

    def command(*arguments: str) -> Callable[[], Any]:
        return lambda: subprocess.run([sys.executable, "-m", "qzc", *arguments], check=True, stdout=subprocess.DEVNULL)

    file = str(folder / "0.qzc")
    names = (("--help",), ("ls", file), ("info", file), ("verify", "-q", file))
    return take_turns({f"qzc {name[0]}": command(*name) for name in names}, rounds)


def take_turns(candidates: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    times: dict[str, list[float]] = {title: [] for title in candidates}
    for number in range(rounds + 1):
        for title, call in candidates.items():
            began = time.perf_counter()
            result = call()
            if number:  # the first round warms up
                times[title].append(time.perf_counter() - began)
            del result
    return {t: {"median": statistics.median(x), "best": min(x), "worst": max(x)} for t, x in times.items()}


def memory(folder: Path) -> dict[str, dict[str, float]]:
    """Peak resident memory of `qzc pack` on checkpoints of 2 GB, each beside what it may be.

    That is 1.5 x the largest tensor + 300 MB; at a rate + 400 MB, and the factor of the largest input in both precisions.
    """
    largest, wide, deep = 10_000 * 10_000, folder / "wide.safetensors", folder / "deep.safetensors"
    write_synthetic(wide, [(10_000, 10_000)] * 4 + [(3_500, 3_500)] * 8)
    write_synthetic(deep, [(25_000, 4_000)] * 4 + [(3_500, 3_500)] * 8)
    stats = folder / "stats.safetensors"
    write_statistics(stats, deep)
    figures = {}
    for title, model, arguments, limit in (
        ("4 bits", wide, ["--bits", "4"], 300e6),
        ("8 bits", wide, ["--bits", "8"], 300e6),
        ("3 bits per weight, rtn-ec", deep, ["--target-bpw", "3"], 400e6),
        ("3 bits per weight, watersic", deep, ["--target-bpw", "3", "--stats", str(stats)], 400e6 + 12 * 4_000**2),
    ):
        peak, taken = peak_of(["pack", str(model), "-o", str(folder / "big.qzc"), "-f", "-q", *arguments])
        figures[title] = {"peak_bytes": peak, "limit_bytes": 1.5 * 4 * largest + limit, "seconds": taken}
    return figures


PEAK = """
import re, resource, sys
from pathlib import Path
from qzc.cli.main import run
code, status = run(sys.argv[1:]), Path("/proc/self/status")
# On Linux ru_maxrss begins with what the process that started this one had.
own = re.search(r"VmHWM:\\s*(\\d+) kB", status.read_text()) if status.exists() else None
unit = 1 if sys.platform == "darwin" else 1024
print(1024 * int(own[1]) if own else unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


def peak_of(arguments: list[str]) -> tuple[float, float]:
    """(bytes, seconds) of a `qzc` command in a fresh process."""
    began = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", PEAK, *arguments], check=True, capture_output=True, text=True)
    return float(result.stdout.split()[-1]), time.perf_counter() - began


def write_statistics(path: Path, model: Path) -> None:
    """A file as `qzc calibrate` writes it: every tensor with an input of its own, neighbours in it correlated."""
    tensors: dict[str, NDArray[np.float32]] = {}
    listed: dict[str, list[object]] = {}
    with safetensors.safe_open(model, "numpy") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    for name, (_, columns) in shapes.items():
        spread = np.random.default_rng(columns).uniform(0.3, 3, columns)
        powers = (0.7 ** np.arange(columns)).astype(np.float32)
        rows = [spread[i] * spread[: i + 1] * powers[i::-1] for i in range(columns)]
        tensors[f"{name}.gram"] = np.concatenate(rows).astype(np.float32)
        tensors[f"{name}.power"] = (spread**2).astype(np.float32)
        tensors[f"{name}.mean"] = np.zeros(columns, np.float32)
        listed[name] = [name, 1]
    metadata = {"format": FORMAT, "version": VERSION, "model_hash": fingerprint(model), "text_hash": "0" * 16}
    metadata |= dict.fromkeys(COUNTS, "1") | {"tensors": json.dumps(listed)}
    safetensors.numpy.save_file(tensors, path, metadata)


def write_synthetic(path: Path, shapes: list[tuple[int, int]]) -> None:
    """FP32 tensors of Gaussian noise, written without holding one in memory."""
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.02, 1 << 22).astype(np.float32)
    header, at = {}, 0
    for i, shape in enumerate(shapes):
        nbytes = 4 * shape[0] * shape[1]
        header[f"layer{i}.weight"] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes:
            left = shape[0] * shape[1]
            while left:
                file.write(memoryview(np.roll(noise, int(generator.integers(noise.size)))[: min(left, noise.size)]))
                left -= min(left, noise.size)


def machine() -> dict[str, Any]:
    return {"cpu": cpu_name(), "cpus": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__}


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(figures: dict[str, Any]) -> None:
    print(f"{figures['model']} on {figures['machine']['cpus']} CPUs, {figures['machine']['cpu']}\n")
    print("| grid | file bytes | bits/weight | payload | chunk index | header | not coded |")
    print("|---|---|---|---|---|---|---|")
    for title, p in figures["sizes"].items():
        cells = (p[k] for k in ("payload", "index", "header", "uncoded"))
        print(f"| {title} | {p['file']:,} | {p['bits_per_weight']:.3f} | {' | '.join(f'{c:,}' for c in cells)} |")
    print("\n| seconds | median | best | worst |\n|---|---|---|---|")
    for title, t in {**figures["seconds"], **figures["start_up_seconds"]}.items():
        print(f"| {title} | {t['median']:.3f} | {t['best']:.3f} | {t['worst']:.3f} |")
    if "memory" in figures:
        print("\n| peak memory of packing 2 GB | MB | may be | seconds |\n|---|---|---|---|")
        for title, m in figures["memory"].items():
            print(f"| {title} | {m['peak_bytes'] / 1e6:.0f} | {m['limit_bytes'] / 1e6:.0f} | {m['seconds']:.0f} |")


if __name__ == "__main__":
    main()
