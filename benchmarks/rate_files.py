"""The figures of quantization at a rate, from real files, next to those that were asked for; and what packing costs.

    python benchmarks/rate_files.py --causal FOLDER TRAIN TEST [--encoder FOLDER TRAIN TEST] [--cost] [--only METHOD ...]

Needs torch and transformers. FOLDER is what transformers can load; TRAIN and TEST are texts or `FILE.npz:ARRAY` of token
ids. The causal model is a small Llama trained on WikiText-2 (51,200 tokens of its train part for calibration, 200 windows
of 256 tokens of its test part), the encoder is all-MiniLM-L6-v2 (windows of 128 tokens). Matrices in the blocks are
quantized, all else stays. Bits are those that the packed file has for the quantized tensors, everything counted; of GPTQ
also those of its codes as packed integers. Harm: KL divergence in nats per token, of the encoder 1 - cosine, with 95 %
intervals over windows. `asked` is what a research prototype reached: at most 1.05 times its harm.

`s` is the time of all of `qzc.pack`; give `--threads 1` for that of one core. `--cost`: of quantizing random matrices.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import qzc
from qzc.hf.calibrate import CalibrateOptions, calibrate
from qzc.hf.evaluate import Comparison, EvalOptions
from qzc.hf.pareto import packed_int_bits, trials
from qzc.hf.text import WindowOptions
from qzc.quantize.hessian import factorize
from qzc.quantize.rate import solve
from qzc.quantize.rtn_ec import rtn_ec
from qzc.quantize.unbounded import quantize_design
from qzc.quantize.watersic import watersic

LIMIT = 1.05
KEPT = ("*embed*", "lm_head*", "*pooler*")


class Case(NamedTuple):
    """asked: harm of the prototype at `rate`; aim: what was hoped for beyond."""

    method: str
    rate: float
    asked: float | None = None
    aim: float | None = None


CAUSAL = (
    Case("gptq:row", 4, 0.00213),
    Case("gptq:128", 4, 0.00199),
    Case("gptq:row", 3),
    Case("gptq:128", 3, 0.00909),
    Case("gptq:row", 2),
    Case("gptq:128", 2, 0.0670),
    Case("gptq:128:asym", 4, 0.00199),
    Case("gptq:128:asym", 3, 0.00909),
    Case("gptq:128:asym", 2, 0.0670),
    Case("rtn-ec", 2.999, 0.01003),
    Case("rtn-ec:uniform", 2.999, 0.01003),
    Case("watersic", 2.998, 0.00433),
    Case("watersic:uniform", 2.998, 0.00433),
    Case("best", 3.149, 0.00288, 0.00199),
    Case("best", 2.999, 0.00356),
    Case("best", 2.25, None, 0.0091),
    Case("best", 2.0, 0.0244),
    Case("best", 1.3, None, 0.067),
)
ENCODER = (
    Case("gptq:row", 4, 0.0197),
    Case("gptq:128", 4, 0.0164),
    Case("gptq:128:asym", 4, 0.0164),
    Case("watersic", 2.0, 0.101),
    Case("watersic", 3.0, 0.0250),
    Case("best", 2.0, 0.092),
    Case("best", 3.0, 0.0205, 0.0164),
    Case("best", 3.15, 0.0164),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in ("causal", "encoder"):
        parser.add_argument(f"--{kind}", nargs=3, metavar=("FOLDER", "TRAIN", "TEST"))
        parser.add_argument(
            f"--{kind}-stats", type=Path, metavar="FILE", help="from an earlier run; written if missing"
        )
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="as in the tables: gptq:row, watersic, best ...")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cost", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qzc-bench-") as name:
        if options.causal:
            test, stats = WindowOptions(200, 256), options.causal_stats
            quality(options.causal, chosen(CAUSAL, options.only), 200, test, stats, options.threads, Path(name))
        if options.encoder:
            test, stats = WindowOptions(96, 128), options.encoder_stats
            quality(options.encoder, chosen(ENCODER, options.only), 700, test, stats, options.threads, Path(name))
        if options.cost:
            cost()


def chosen(cases: Sequence[Case], methods: Sequence[str] | None) -> list[Case]:
    return [case for case in cases if not methods or case.method in methods]


def quality(
    model: Sequence[str],
    cases: Iterable[Case],
    windows: int,
    test: WindowOptions,
    stats: Path | None,
    threads: int,
    folder: Path,
) -> None:
    """One table: every case packed, read back and evaluated."""
    source, train, text = model
    stats = stats or folder / f"{Path(source).name}.statistics"
    if not stats.exists():
        began = time.perf_counter()
        found = calibrate(
            source, [train], stats, CalibrateOptions(WindowOptions(windows, test.length), threads=threads)
        )
        print(f"calibration on {found.windows}: {time.perf_counter() - began:.0f} s")
    comparison = Comparison(source, [text], EvalOptions(test, threads=threads))
    print(f"{Path(source).name}: {comparison.windows}\n")
    print("| method | asked rate | file bits | packed ints | harm | 95 % | asked | x | aim | x | perplexity | s |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    tensors = 0
    for case in cases:
        (trial,) = trials([case.method], [case.rate])
        output = folder / trial.file_name
        report = qzc.pack(source, output, trial.pack_options(stats, exclude=KEPT, threads=threads))
        measured = comparison.measure(output)
        harm, perplexity = measured.cosine_distance or measured.kl, measured.perplexity
        assert harm is not None and harm.low is not None and harm.high is not None
        cells = [case.method, f"{case.rate:g}", f"{report.bits_per_weight:.4f}"]
        cells.append(f"{packed_int_bits(report):.3f}" if trial.on_grid else "")
        cells += [f"{harm.value:.5f}", f"{harm.low:.5f} .. {harm.high:.5f}"]
        for known in (case.asked, case.aim):
            cells += ["", ""] if known is None else [f"{known:.5f}", f"{harm.value / known:.3f}"]
        cells += [f"{perplexity.value:.3f}" if perplexity else "", f"{report.seconds:.1f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
        tensors = len(report.quantized)
    print(
        f"\n{tensors} matrices quantized; x: harm as a multiple of what was asked for (at most {LIMIT} counts as reached)\n"
    )


def cost() -> None:
    """On one thread: factorizing, the search for the step at 3 bits, one pass over all weights; and rounding alone."""
    rng = np.random.default_rng(0)
    print("| inputs | weights | factorize, us per weight | search and all | of it one pass |\n|---|---|---|---|---|")
    for columns, rows in ((384, 1536), (768, 3072), (1536, 1536), (1536, 6144)):
        inputs = rng.standard_normal((2 * columns, columns)) * rng.lognormal(0, 0.7, columns)
        inputs[:, 1:] += 0.5 * inputs[:, :-1]
        gram, weights = inputs.T @ inputs, rng.standard_t(6, (rows, columns)).astype(np.float32)
        design = watersic(weights, "F32", factorize(gram))
        step = solve([design], 3.0).steps[0]
        spent = [
            1e6 * median(call, 3) / weights.size
            for call in (
                partial(factorize, gram),
                partial(solve, [design], 3.0),
                partial(quantize_design, design, step, None),
            )
        ]
        print(f"| {columns} | {weights.size:,} | {' | '.join(f'{each:.3f}' for each in spent)} |", flush=True)
    array = rng.standard_normal((8192, 4096), np.float32)
    target = np.empty_like(array)
    design = rtn_ec(array, "F32")
    passes: dict[str, Callable[[], Any]] = {
        "copying to memory that is there": partial(np.copyto, target, array),
        "copying to new memory": array.copy,
        "rtn-ec: looking at the weights, three times": partial(rtn_ec, array, "F32"),
        "rtn-ec: rounding to new memory": partial(quantize_design, design, 0.3, None, 0.0),
    }
    # In turns: on a shared machine each second is another.
    rounds = [[median(call, 1) for call in passes.values()] for _ in range(7)]
    print("\n| pass over 33.5 million weights | ns per weight | x copying |\n|---|---|---|")
    for number, name in enumerate(passes):
        seconds = statistics.median(each[number] for each in rounds)
        ratio = statistics.median(each[number] / each[0] for each in rounds)
        print(f"| {name} | {1e9 * seconds / array.size:.3f} | {ratio:.2f} |", flush=True)


def median(call: Callable[[], Any], rounds: int) -> float:
    """Seconds, after one call that is not counted."""
    call()
    spent = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


if __name__ == "__main__":
    main()
