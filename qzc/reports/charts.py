"""The charts of a report, one function each: from measured figures to plain chart data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import floor, log10

import numpy as np

from ..analysis.roofline import Roofline
from ..analysis.weight_fit import Law, code_shares
from ..statistics.deep_figures import CODERS, CodeFigures, ControlFigures, DeepStats, Precision, TensorFigures
from ..statistics.deep_grids import REFERENCE
from .axes import number
from .data import Bars, Heat, Histograms, Line, Lines, Panel, Planes, Strip, Table
from .words import level_of, size_words

CODER_NAMES = {
    "huffman_symbol": "Huffman, per code",
    "huffman_byte": "Huffman, packed bytes",
    "ans": "ANS",
    "zstd1_packed": "zstd -1 on packed",
    "gzip6_packed": "gzip -6 on packed",
}
LAW_NAMES = {
    None: "trained weights",
    "kaiming": "uniform, Kaiming",
    "xavier": "uniform, Xavier",
    "gaussian": "Gaussian, same spread",
}
FITS: tuple[Law, ...] = ("gaussian", "laplace", "student-t")
PANELS, HEAT_ROWS = 6, 48


def planes(deep: DeepStats) -> Planes | None:
    floats = deep.totals.floats
    if floats is None:
        return None
    rows = [(f.name, f"{f.first}-{f.first + f.bits - 1}", f"{f.entropy:.4f}", str(f.bits)) for f in floats.fields]
    rows += [(f"bit {i}", str(i), f"{value:.4f}", "1") for i, value in enumerate(floats.planes)]
    return Planes(
        "planes",
        f"Where the information of {floats.dtype} weights sits",
        "Entropy of each bit by itself, from the sign (left) to the last bit of the mantissa. A full bar is a coin toss: no coder can "
        "make it smaller. Below: bits of entropy of a whole field.",
        f"Of {len(floats.planes)} bit planes {floats.noise_planes} are as good as coin tosses. "
        + "; ".join(f"{f.name}: {f.entropy:.2f} of {f.bits} bits" for f in floats.fields)
        + ".",
        Table(("field", "bits", "entropy", "of"), tuple(rows)),
        floats.planes,
        tuple((f.name, f.bits, f"{f.entropy:.2f} of {f.bits}") for f in floats.fields),
    )


def controls(deep: DeepStats, main: Precision | None) -> Bars | None:
    order = {"kaiming": 0, "xavier": 1, "gaussian": 2, None: 3}
    controls = sorted(deep.totals.control, key=lambda one: order[one.law])
    if not controls:
        return None
    labels = [LAW_NAMES[one.law] for one in controls]
    values: list[tuple[float | None, ...]] = [_control_values(one) for one in controls]
    series = ["zstd -3 on the floats", "gzip -6 on the floats", "quantized and coded"]
    bits = 4 if 4 in deep.bits else deep.bits[-1]
    if any(one.entropy for one in controls):
        wide = 8 * controls[0].nbytes / controls[0].measured
        values = [
            (*row[:2], wide / one.entropy if one.entropy else None) for row, one in zip(values, controls, strict=True)
        ]
    keep = [j for j in range(3) if any(row[j] is not None for row in values)]
    words = [tuple("" if row[j] is None else f"{row[j]:.3f}x" for j in keep) for row in values]
    return Bars(
        "control",
        "Noise, trained weights, and trained weights quantized",
        "How many times smaller weights become: as floats under general compressors, and as entropy-coded codes of a "
        f"{bits}-bit grid (entropy of the codes, without scales). Random tensors have the shapes of the model's. The dashed line is 1x.",
        "; ".join(
            f"{label}: {', '.join(word for word in row if word)}" for label, row in zip(labels, words, strict=True)
        )
        + ".",
        Table(
            ("weights", *(series[j] for j in keep), f"entropy at {bits} bits"),
            tuple(
                (label, *row, "-" if one.entropy is None else f"{one.entropy:.4f}")
                for label, row, one in zip(labels, words, controls, strict=True)
            ),
        ),
        tuple(labels),
        tuple(series[j] for j in keep),
        tuple(tuple(row[j] for j in keep) for row in values),
        tuple(words),
        base=1.0,
    )


def _control_values(one: ControlFigures) -> tuple[float | None, ...]:
    return (one.zstd_ratio, one.gzip_ratio, None)


def waterfall(deep: DeepStats, main: Precision, file_nbytes: int | None) -> Bars:
    parameters = deep.totals.parameters
    steps = [
        ("FP32", 4.0 * parameters),
        ("BF16", 2.0 * parameters),
        (f"{main.bits}-bit codes, packed", float(main.dense_nbytes)),
        ("zstd -1 on packed codes", float(main.packed_zstd_nbytes)),
        ("entropy of the codes", float(main.entropy_nbytes)),
        (
            "qzc file" if file_nbytes or deep.sample is None else "qzc file, estimated",
            float(file_nbytes or main.total_nbytes),
        ),
    ]
    words = [f"{size_words(size)}, {8 * size / parameters:.3f} b" for _, size in steps]
    return Bars(
        "sizes",
        f"From FP32 to coded {main.bits}-bit weights",
        f"Size of all weights: {main.bits}-bit codes with their scales, {size_words(main.kept_nbytes)} of tensors that are kept, header and "
        "checksums. The entropy is the order-0 entropy of each tensor's codes: no table, no coder. b: bits per weight.",
        f"FP32 takes {size_words(steps[0][1])}, packed {main.bits}-bit codes {size_words(steps[2][1])}, coded {size_words(steps[-1][1])}.",
        Table(
            ("step", "bytes", "bits per weight", "smaller than FP32"),
            tuple(
                (label, f"{size:,.0f}", f"{8 * size / parameters:.4f}", f"{4 * parameters / size:.3f}x")
                for label, size in steps
            ),
        ),
        tuple(label for label, _ in steps),
        ("size",),
        tuple((size,) for _, size in steps),
        tuple((word,) for word in words),
    )


def histograms(deep: DeepStats, bits: int) -> Histograms:
    tensors = [(tensor, codes) for tensor in deep.tensors if (codes := tensor.at(bits)) is not None]
    by_entropy = sorted(tensors, key=lambda pair: pair[1].entropy)
    many = len(by_entropy)
    chosen = by_entropy if many <= PANELS else [by_entropy[round(i * (many - 1) / (PANELS - 1))] for i in range(PANELS)]
    panels, rows = [], []
    for tensor, codes in chosen:
        panel, row = _one_histogram(tensor, codes)
        panels.append(panel)
        rows.append(row)
    return Histograms(
        "histograms",
        f"What {bits}-bit codes look like",
        "Shares of the codes of some tensors, from the lowest to the highest entropy, and the best Gaussian, Laplace and Student-t law "
        "for each. The first and last code take all that lies beyond. Codes near the middle are common, and that is all a coder has.",
        f"{len(panels)} histograms of codes with three curves each; the table says how many bits each curve is off.",
        Table(("tensor", "entropy", *(f"{law}: bits wasted" for law in FITS)), tuple(rows)),
        tuple(panels),
    )


def _one_histogram(tensor: TensorFigures, codes: CodeFigures) -> tuple[Panel, tuple[str, ...]]:
    counts = np.array(codes.histogram, np.int64)
    shares = counts / counts.sum()
    fits, wasted = [], []
    for law in FITS:
        fitted, _ = code_shares(counts, law)
        used = shares > 0
        wasted.append(float((shares[used] * np.log2(shares[used] / np.maximum(fitted[used], 1e-30))).sum()))
        fits.append((law, tuple(float(share) for share in fitted)))
    entropy = codes.entropy
    panel = Panel(f"{tensor.name}: {entropy:.3f} b", tuple(float(share) for share in shares), tuple(fits))
    return panel, (tensor.name, f"{entropy:.4f}", *(f"{loss:.4f}" for loss in wasted))


def efficiency(deep: DeepStats) -> Strip:
    precisions = deep.totals.precisions
    coders = [coder for coder in CODERS if all(coder in p.codes.coder_nbytes for p in precisions)]
    values = tuple(tuple(p.codes.efficiency(coder) for p in precisions) for coder in coders)
    known = [value for row in values for value in row if value is not None]
    low = floor(10 * min(0.0, max(-0.5, min(known, default=0.0)))) / 10
    words = tuple(
        tuple(
            "" if value is None else f"{value:.3f} ({p.codes.coded(coder):.3f} b)"
            for value, p in zip(row, precisions, strict=True)
        )
        for coder, row in zip(coders, values, strict=True)
    )
    return Strip(
        "efficiency",
        "How much of what can be gained each coder gains",
        "0: as many bits as the grid has; 1: the order-0 entropy of each tensor's codes. Everything a file needs is counted (tables, "
        "index), except for the table of Huffman per code. gzip and zstd see packed codes; those of 3, 5 and 6 bits do not fill their "
        "4 or 8 bits.",
        "; ".join(f"{CODER_NAMES[c]}: {_span(row)}" for c, row in zip(coders, values, strict=True)) + ".",
        Table(
            ("coder", *(f"{p.bits} bits" for p in precisions)),
            tuple((CODER_NAMES[coder], *row) for coder, row in zip(coders, words, strict=True)),
        ),
        tuple(CODER_NAMES[coder] for coder in coders),
        tuple(f"{p.bits} bits" for p in precisions),
        values,
        words,
        low=low,
        high=max(1.0, *known) if known else 1.0,
        low_word="nothing gained" if low == 0 else "larger than uncoded below 0",
        high_word="entropy",
    )


def _span(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{min(known):.2f} to {max(known):.2f}" if known else "nothing to gain"


_NUMBER = re.compile(r"\d+")


def heat_place(name: str) -> tuple[str, int | None]:
    """Row and layer of a tensor: the first number among the parts of its name is the layer, further ones do not count.

    >>> heat_place("model.layers.11.mlp.experts.3.up_proj.weight")
    ('mlp.experts.*.up_proj', 11)
    """
    parts = [part for part in name.split(".") if part != "weight"] or [name]
    at = next((i for i, part in enumerate(parts) if _NUMBER.fullmatch(part)), None)
    if at is None or len(parts[at]) > 6:
        return ".".join(parts), None
    rest = ["*" if _NUMBER.fullmatch(part) else part for part in parts[at + 1 :]]
    return ".".join(rest or parts[:at]), int(parts[at])


def heat(deep: DeepStats, bits: int) -> Heat:
    cells: dict[tuple[str, int | None], list[tuple[float, int]]] = {}
    for tensor in deep.tensors:
        if (codes := tensor.at(bits)) is not None:
            cells.setdefault(heat_place(tensor.name), []).append((codes.entropy, codes.count))
    rows = sorted(
        {row for row, _ in cells}, key=lambda row: (all(layer is None for r, layer in cells if r == row), row)
    )
    shown = rows[:HEAT_ROWS]
    layers: list[int | None] = [*sorted({layer for _, layer in cells if layer is not None})]
    if any(layer is None for _, layer in cells):
        layers.append(None)
    values = tuple(tuple(_weighted(cells.get((row, layer))) for layer in layers) for row in shown)
    columns = tuple("other" if layer is None else str(layer) for layer in layers)
    left_out = (
        f" {len(rows) - len(shown)} more kinds of tensor are only in the table." if len(rows) > len(shown) else ""
    )
    table = [
        (
            tensor.name,
            f"{codes.entropy:.4f}",
            f"{codes.coded('ans'):.4f}",
            "-" if codes.snr_db is None else f"{codes.snr_db:.2f}",
        )
        for tensor in deep.tensors
        if (codes := tensor.at(bits)) is not None
    ]
    return Heat(
        "layers",
        f"Entropy of the {bits}-bit codes, layer by layer",
        f"Bits per code, by layer (across) and module (down). Other: tensors that belong to no layer.{left_out}",
        f"A grid of {len(shown)} modules by {len(columns)} layers, each cell coloured by its entropy; the table lists all tensors.",
        Table(("tensor", "entropy", "ANS", "SNR dB"), tuple(table)),
        tuple(shown),
        columns,
        values,
        "bits per code",
    )


def _weighted(values: Sequence[tuple[float, int]] | None) -> float | None:
    return None if not values else sum(v * n for v, n in values) / sum(n for _, n in values)


def quality(deep: DeepStats) -> Lines | None:
    if not deep.curves:
        return None
    lines = [Line(c.grid, tuple((p.bits, p.snr_db) for p in c.coded if -5 < p.snr_db < 50)) for c in deep.curves]
    fixed = next((c for c in deep.curves if c.grid == REFERENCE), None)
    if fixed is not None:
        lines.append(Line(f"{REFERENCE}, not coded", tuple((p.bits, p.snr_db) for p in fixed.fixed), dashed=True))
    names = [curve.grid for curve in deep.curves]
    rows = [
        (f"{level.snr_db:.2f} dB", *("-" if (b := level.bits.get(name)) is None else f"{b:.3f}" for name in names))
        for level in deep.equal_snr
    ]
    return Lines(
        "quality",
        "Quality against bits: weight SNR, grid by grid",
        "Weight SNR stands for quality here: it compares weights, not what the model answers. Bits count codes at their entropy, tables and "
        "scales. Higher and further left is better; read across for bits at equal SNR, as the table does.",
        f"{len(deep.curves)} curves that rise by about 6 dB with each bit, close to each other; the table has them at equal SNR.",
        Table(("SNR", *names), tuple(rows)),
        x="bits per weight, entropy-coded",
        y="weight SNR in dB",
        lines=tuple(line for line in lines if line.points),
    )


def equal_bits(deep: DeepStats, main: Precision) -> Bars | None:
    level = level_of(deep, main)
    if level is None:
        return None
    known = sorted(((bits, name) for name, bits in level.bits.items() if bits is not None))
    fixed = next(curve for curve in deep.curves if curve.grid == REFERENCE)
    known.append((fixed.fixed[fixed.bits.index(main.bits)].bits, f"{REFERENCE}, raw"))
    missing = [name for name, bits in level.bits.items() if bits is None]
    words = [f"{bits:.3f} b" for bits, _ in known]
    return Bars(
        "equal-snr",
        f"Bits at equal quality: what each grid needs for {level.snr_db:.1f} dB",
        f"Bits per weight once coded, scales and tables counted, at the weight SNR of {main.bits} bits in groups of 128; read off the "
        f"curves above. Raw: the same grid without entropy coding."
        + (f" Out of reach at the precisions measured: {', '.join(missing)}." if missing else ""),
        f"{known[0][1]} needs the fewest bits, {words[0]}; {known[-1][1]} needs {words[-1]}.",
        Table(("grid", "bits per weight"), tuple((name, f"{bits:.4f}") for bits, name in known)),
        tuple(name for _, name in known),
        ("bits",),
        tuple((bits,) for bits, _ in known),
        tuple((word,) for word in words),
    )


def tokens(bound: Roofline) -> Strip:
    devices = list(dict.fromkeys(b.device for b in bound.bounds))
    cells = {(b.device, b.format): b for b in bound.bounds}
    names = [f.name for f in bound.formats]
    values = tuple(tuple(cells[device, name].tokens_per_second for name in names) for device in devices)
    words = tuple(tuple(number(value) for value in row) for row in values)
    rates = [value for row in values for value in row]
    cache = f", {bound.context:,} tokens in a {bound.cache} cache" if bound.context else ""
    equal = [f"{name} {tokens:,.0f}" for name, tokens in bound.equal_context.items() if tokens is not None]
    return Strip(
        "roofline",
        "Tokens per second that memory allows",
        f"Reading all weights once per token, batch {bound.batch}{cache}. An upper bound. A coded model reaches its dot only where a "
        "decoder keeps up; otherwise it saves download, disk and loading, and runs as the fixed grid."
        + (f" The cache is as large as the weights at {', '.join(equal)} tokens." if equal else ""),
        "; ".join(f"{device}: {row[0]} to {max(row, key=len)}" for device, row in zip(devices, words, strict=True))
        + ".",
        Table(
            ("device", *(f"{f.name}, {f.bits:.4g} b" for f in bound.formats), "decoder needs GB/s"),
            tuple(
                (
                    device,
                    *row,
                    next(
                        (f"{b.needed_decode:,.0f}" for b in bound.bounds if b.device == device and b.needed_decode), "-"
                    ),
                )
                for device, row in zip(devices, words, strict=True)
            ),
        ),
        tuple(devices),
        tuple(f"{f.name} ({f.bits:.4g} b)" for f in bound.formats),
        values,
        words,
        low=10.0 ** floor(log10(min(rates))),
        high=max(rates) * 1.05,
        log=True,
        low_word="tokens per second",
        high_word="",
    )
