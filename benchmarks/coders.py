"""Speed and size of the coders beside their rivals, on the codes of a real model: one table from one interleaved run.

    python benchmarks/coders.py MODEL.safetensors [--out FOLDER] [--seconds 300]

Quantizes a sample of the model on every grid, has every coder code it and decode it again, compares, and then lets all
coders on all grids with all numbers of threads take turns. Prints Markdown; with --out it also writes coders.json, coders.md
and, if matplotlib is installed, coders.svg and coders.png. `pip install 'qzc[bench]'` brings the rivals.
`figures.py` prints what beyond that is promised; docs/PERFORMANCE.md says what exactly is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from qzc.benchmark import Bench, CoderSpeed, compare
from qzc.quantize.select import BitsRule, Selection
from qzc.sampling import take_sample

STRATEGIES: tuple[Literal["channel", "group"], ...] = ("channel", "group")
BASELINE = "zstd-1-packed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=300, help="for timing; compiling comes on top")
    parser.add_argument("--codes", type=int, default=1 << 22, help="size of the sample for each grid, about")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    samples = [
        take_sample(options.model, selection, sample_codes=options.codes) for selection in selections(options.bits)
    ]
    benches = compare(samples, options.threads, options.seconds)
    text = "\n".join(markdown(options.model.name, benches, len(options.threads)))
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "coders.md").write_text(text + "\n")
        (options.out / "coders.json").write_text(json.dumps(document(benches), indent=2, allow_nan=False) + "\n")
        plot([bench for bench in benches if bench.threads == options.threads[0]], options.out)


def selections(all_bits: Sequence[int]) -> Iterator[Selection]:
    """By number of bits, one scale per row and one per 128 weights; how scales are found is the default of `pack`."""
    for bits in all_bits:
        for strategy in STRATEGIES:
            yield Selection((BitsRule("*", bits),), strategy=strategy)


def document(benches: Sequence[Bench]) -> dict[str, Any]:
    """All runs, each as `qzc bench --json` prints it but for the name of the file: folders are nobody's business."""
    return {
        "schema": "qzc.coders/1",
        "runs": [{**bench.to_json(), "source": bench.source.name, "grid": grid(bench)} for bench in benches],
    }


def grid(bench: Bench) -> str:
    args = bench.grids[0]
    return f"{args.num_bits}-bit {args.strategy}{f' {args.group_size}' if args.group_size else ''} {args.scale_method}"


def markdown(model: str, benches: Sequence[Bench], runs_per_grid: int) -> Iterator[str]:
    """One table: the coders by grid, the first number of threads in full and the others as speed and gain."""
    machine, first = benches[0].machine, benches[0]
    others = [bench.threads for bench in benches[1:runs_per_grid]]
    yield (
        f"{model}: {first.sampled_codes:,} of {first.total_codes:,} codes in {first.sampled_chunks} chunks for each grid. "
        f"{machine['cpu']} at {machine['clock_ghz']:.2f} GHz, {machine['cpus']} CPUs, Python {machine['python']}, "
        f"NumPy {machine['numpy']}, numba {machine['numba']}, kernels {machine['ans_kernels']}. "
        f"G/s: 10^9 codes per second, median (best), {threads_text(first.threads)}. x zstd: medians beside {BASELINE}. "
        "Gain: best with more threads beside best with the first number. All round trips verified."
    )
    yield f"Rivals: {', '.join(dict.fromkeys(row.library for row in first.rows if row.library))}."
    if first.missing:
        yield f"Not installed: {', '.join(first.missing)}."
    yield ""
    titles = ["codes", "coder", "bits/code", "above H0", "encode G/s", "x zstd", "decode G/s", "x zstd", "cycles/code"]
    titles += [f"decode, {threads_text(threads)} G/s" for threads in others] + ["gain" for _ in others]
    yield f"| {' | '.join(titles)} |"
    yield f"|{'---|' * len(titles)}"
    for at in range(0, len(benches), runs_per_grid):
        full, *rest = benches[at : at + runs_per_grid]
        for i, row in enumerate(full.rows):
            title = f"**{grid(full)}**, H0 {full.entropy_bits:.4f}" if i == 0 else ""
            yield f"| {' | '.join([title, *cells(row, full, [bench.rows[i] for bench in rest])])} |"


def cells(row: CoderSpeed, bench: Bench, others: Sequence[CoderSpeed]) -> list[str]:
    """The cells of a coder: its row, the run it belongs to, and its rows with other numbers of threads."""
    zstd = next((other for other in bench.rows if other.coder == BASELINE), None)
    bits = row.bits_per_code
    above = f"{100 * (bits / bench.entropy_bits - 1):+.2f} %" if bits and bench.entropy_bits else ""
    found = [row.coder, f"{bits:.4f}" if bits else "failed", above]
    for direction in ("encode", "decode"):
        found += [speed_text(row, direction), ratio_text(row, zstd, direction)]
    found.append(f"{row.cycles_per_code:.2f}" if row.cycles_per_code else "")
    found += [speed_text(other, "decode") for other in others]
    return found + [ratio_text(other, row, "decode", "best") for other in others]


def speed_text(row: CoderSpeed, direction: str) -> str:
    median, best = row.codes_per_s(direction), row.codes_per_s(direction, "best")
    return f"{median / 1e9:.3g} ({best / 1e9:.3g})" if median and best else ""


def ratio_text(row: CoderSpeed, base: CoderSpeed | None, direction: str, which: str = "median") -> str:
    own, other = row.codes_per_s(direction, which), base.codes_per_s(direction, which) if base else None
    return f"{own / other:.2f}" if own and other else ""


def threads_text(threads: int) -> str:
    return f"{threads} thread{'' if threads == 1 else 's'}"


def plot(benches: Sequence[Bench], folder: Path) -> None:
    """Decoding speed against size, one panel per grid; what does not code at all is left out."""
    try:
        import matplotlib  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "qzc"  # the same picture, the same bytes
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    columns = min(len(benches), len(STRATEGIES))
    lines = -(-len(benches) // columns)
    size = (6.5 * columns, 4.2 * lines)
    figure, axes = pyplot.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis, bench in zip(axes.flat, benches, strict=False):
        axis.set(title=f"{grid(bench)} (dashed: entropy)", xlabel="bits per code", ylabel="decode, 10⁹ codes/s")
        axis.set(yscale="log")
        axis.margins(x=0.15, y=0.1)
        axis.grid(alpha=0.3)
        axis.axvline(bench.entropy_bits, color="0.6", linestyle="--", linewidth=1)
        rows = [row for row in bench.rows if row.coder not in ("raw", "unpack", "memcpy", "ans-float16")]
        points = [
            (row, row.bits_per_code or 0.0, (row.codes_per_s("decode") or 0.0) / 1e9) for row in rows if row.decode
        ]
        for row, bits, speed in points:
            axis.plot(bits, speed, "o", color="tab:blue" if row.library else "tab:red")
        taken: list[tuple[float, float]] = []
        for row, bits, speed in sorted(points, key=lambda point: -point[2]):
            x, y = axis.transData.transform((bits, speed))
            down = 0
            while any(abs(x - a) < 60 and abs(y - down - b) < 11 for a, b in taken):
                down += 3  # names of points that lie close together stand below each other
            taken.append((x, y - down))
            axis.annotate(
                row.coder.removesuffix("-packed"),
                (bits, speed),
                textcoords="offset points",
                xytext=(6, 3 - down * 72 / figure.dpi),
                fontsize=8,
                weight="normal" if row.library else "bold",
            )
    figure.savefig(folder / "coders.svg", metadata={"Date": None})
    figure.savefig(folder / "coders.png", dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
