"""What figures say in words: facts, findings and reservations of a report."""

from __future__ import annotations

from pathlib import Path

from ..analysis.equal_snr import EqualSnr
from ..statistics.deep_figures import DeepStats, Precision
from ..statistics.deep_grids import REFERENCE, STEP

ALIKE = 1.1  # ratios and entropies that differ by less than this factor tell the same story


def model_name(source: Path) -> str:
    path = source if source.name else source.resolve()
    return f"{path.parent.name}/{path.name}" if path.stem == "model" and path.parent.name else path.name


def facts(deep: DeepStats, main: Precision | None) -> tuple[tuple[str, str], ...]:
    totals = deep.totals
    found = [
        ("weights", f"{totals.parameters:,}"),
        ("tensors", f"{totals.tensors}, {main.file.coded_tensors if main else 0} quantized"),
        ("size as it is", size_words(totals.nbytes)),
    ]
    if main is not None:
        sizes = main.file.sizes
        found += [
            (
                f"{main.bits}-bit, coded",
                f"{size_words(main.total_nbytes)}, {sizes.bits_per_weight:.3f} bits per weight",
            ),
            ("smaller than FP32 / FP16", f"{sizes.ratio_to_fp32:.2f}x / {sizes.ratio_to_fp16:.2f}x"),
        ]
        if main.codes.snr_db is not None:
            found.append(("weight SNR", f"{main.codes.snr_db:.1f} dB"))
    if deep.sample is not None:
        found.append(("sampled", f"up to {deep.sample:,} weights of each tensor"))
    return tuple(found)


def findings(deep: DeepStats, main: Precision | None) -> list[str]:
    totals, found = deep.totals, []
    floats = totals.floats
    if floats is not None and totals.zstd_ratio is not None:
        tools = [("gzip -6", totals.gzip_ratio), ("zstd -3", totals.zstd_ratio)]
        gains = [f"{tool} makes the file {_gain(ratio)}" for tool, ratio in tools if ratio is not None]
        exponent = next(field for field in floats.fields if field.name == "exponent")
        found.append(
            f"{_randomness(totals.zstd_ratio)} {', '.join(gains)}. "
            f"{floats.noise_planes} of the {len(floats.planes)} bit planes of {floats.dtype} are as good as coin tosses; "
            f"the {exponent.bits} bits of the exponent hold {exponent.entropy:.2f} bits of information."
        )
    random = next((one for one in totals.control if one.law == "gaussian"), None)
    trained = next((one for one in totals.control if one.law is None), None)
    if random is not None and trained is not None:
        tool, ours, noise = (
            ("gzip -6", trained.gzip_ratio, random.gzip_ratio)
            if trained.gzip_ratio and random.gzip_ratio
            else ("zstd -3", trained.zstd_ratio, random.zstd_ratio)
        )
        alike = ours is not None and noise is not None and ours < ALIKE * noise
        found.append(
            f"{'Training leaves little' if alike else 'Training leaves something'} that a byte compressor sees: {tool} gains {ours:.3f}x "
            f"on trained weights and {noise:.3f}x on Gaussian noise of the same spread."
        )
        if random.entropy is not None and trained.entropy is not None:
            why = (
                "The grid makes weights small, more than what they learned"
                if trained.entropy * ALIKE > random.entropy
                else "On a grid"
            )
            found.append(
                f"{why}: codes of that noise have {random.entropy:.3f} bits of entropy, those of the trained weights {trained.entropy:.3f}."
            )
    if main is not None:
        found += _code_findings(deep, main)
    return found


def _code_findings(deep: DeepStats, main: Precision) -> list[str]:
    assert main.bits is not None
    codes, found = main.codes, []
    entropy, ans = codes.entropy, codes.coded("ans") or 0.0
    text = (
        f"{main.bits}-bit codes hold {entropy:.3f} bits of entropy; ANS takes {ans:.3f}, which is {main.bits / ans:.2f}x on top of "
        f"{main.bits} bits"
    )
    if main.bits == 4:
        claim = "less than" if main.bits / ans < 1.3 else "within" if main.bits / ans <= 1.5 else "more than"
        text += f", {claim} the 1.3 to 1.5x that is often said"
    found.append(text + f". zstd -1 on the packed codes takes {codes.coded('zstd1_packed'):.3f}.")
    models = codes.models
    if models is not None:
        best = min(models.row.with_tables, models.column.with_tables, models.classes.with_tables)
        saved = models.order0.with_tables - best
        found.append(
            f"Context saves {saved:.3f} bits per code at best, tables counted."
            if saved > 0
            else "Neighbours tell nothing that pays: order-1 models and classes of scale cost more than they save, tables counted."
        )
    curves = {curve.grid: curve for curve in deep.curves}
    if "tensor absmax" in curves and main.bits in curves["tensor absmax"].bits and REFERENCE in curves:
        worst = curves["tensor absmax"]
        at = worst.coded[worst.bits.index(main.bits)]
        if main.codes.snr_db is not None and at.snr_db < main.codes.snr_db - 3.0:
            found.append(
                f"Low entropy alone is no success: one scale per tensor brings {main.bits}-bit codes to {at.bits:.2f} bits, at a weight "
                f"SNR of {at.snr_db:.1f} dB instead of {main.codes.snr_db:.1f}."
            )
    level = level_of(deep, main)
    if level is not None and (step := level.bits[STEP]) and (reference := level.bits.get(REFERENCE)):
        found.append(
            f"At the same {level.snr_db:.1f} dB a grid with one step and no end needs {step:.2f} bits per weight once coded, groups of "
            f"128 need {reference:.2f}: what entropy coding changes is which grid is best."
        )
    return found


def level_of(deep: DeepStats, main: Precision) -> EqualSnr | None:
    """All grids at the SNR of the default kind of grid at this precision."""
    curve = next((curve for curve in deep.curves if curve.grid == REFERENCE), None)
    if curve is None or main.bits not in curve.bits:
        return None
    snr = curve.coded[curve.bits.index(main.bits)].snr_db
    return next((level for level in deep.equal_snr if level.snr_db == snr), None)


def notes(deep: DeepStats) -> list[str]:
    found = ["SNR compares weights, not what a model answers."]
    if deep.curves:
        found.append("Kinds of grid are compared on rows sampled from each tensor, 262,144 weights at most.")
    errors = [p.codes.error for p in deep.totals.precisions if p.codes.error]
    if deep.sample is not None and errors:
        found.append(
            f"Sampled: up to {deep.sample:,} weights of each tensor, in 16 blocks of rows. Standard error of the entropies: "
            f"{max(errors):.4f} bits per code."
        )
    return found


def _randomness(ratio: float) -> str:
    if ratio < 1.3:
        return "Weights look random because most of their bits are."
    return "These weights do not look random: they use fewer values than their format has."


def _gain(ratio: float | None) -> str:
    if ratio is None:
        return "unknown"
    return f"{1 - 1 / ratio:.1%} smaller" if ratio >= 1 else f"{1 / ratio - 1:.1%} larger"


def size_words(nbytes: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.4g} {unit}"
    return f"{nbytes:.0f} B"
