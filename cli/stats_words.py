"""What `qzc stats` says below its tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .sizes import size_text

if TYPE_CHECKING:
    from ..analysis.code_stats import LosslessStats
    from ..analysis.tensor_stats import TensorStats
    from ..statistics.deep_figures import DeepStats
    from ..statistics.measure import ModelStats

POOR_SNR_DB = 10.0  # every tenth of the weights' energy is then noise: even 3 bits per row do better


def single_words(measured: ModelStats, deep: DeepStats | None) -> list[str]:
    """Of one precision, or of a file."""
    notes = [_codes_sentence(measured), _size_sentence(measured)]
    if measured.totals.coded_tensors == 0:
        notes += _lossless_sentences(measured)
    return [note for note in (*notes, *_sampling(deep), *_broken(measured), *_quality_warnings([measured])) if note]


def several_words(measured: tuple[ModelStats, ...], deep: DeepStats | None) -> list[str]:
    first = measured[0]
    sizes = first.totals.sizes
    notes = [f"All {first.totals.tensors} tensors: {size_text(sizes.nbytes)}. {_general(first)}"]
    return [*notes, *_sampling(deep), *_broken(first), *_quality_warnings(measured)]


def _codes_sentence(measured: ModelStats) -> str:
    codes = measured.totals.sizes.codes
    if codes is None or not codes.count:
        return _rate_sentence(measured) or "No tensor is quantized."
    of = f"of {codes.level_bits / codes.count:.3g} bits (H0 {codes.entropy_bits / codes.count:.3f})"
    way = "file" if "file" in codes.coded else "ans"
    taken = f"{codes.coded_bits(way):.3f} {of}"
    text = f"Codes take {taken} with {'+'.join(codes.final.coders)}" if way == "file" else f"ANS codes take {taken}"
    if "huffman" in codes.coded:
        text += f", Huffman codes {codes.coded_bits('huffman'):.3f}"
    if codes.packed_zstd_bits is not None:
        text += f"; zstd -1 on the packed codes takes {codes.packed_zstd_bits:.3f}"
    text += f"; scales{'' if codes.zero_point.nbytes == 0 else ' and zero points'} add {8 * codes.side_nbytes / codes.count:.3f}."
    return text + (f" Weight SNR {codes.snr_db:.1f} dB." if codes.snr_db is not None else "")


def _rate_sentence(measured: ModelStats) -> str:
    """Of tensors without a grid of so many levels; "" if there are none."""
    rated = [tensor.sizes for tensor in measured.tensors if tensor.sizes.rated and not tensor.tied_to]
    weights = sum(sizes.parameters for sizes in rated)
    if not weights:
        return ""
    bits = 8 * sum(sizes.stored_nbytes for sizes in rated) / weights
    return f"{len(rated)} tensors are quantized at a rate: payloads take {bits:.3f} bits per weight."


def _size_sentence(measured: ModelStats) -> str:
    sizes = measured.totals.sizes
    if not sizes.parameters or not sizes.stored_nbytes:
        return ""
    text = f"All {measured.totals.tensors} tensors: {size_text(sizes.nbytes)} -> {size_text(sizes.stored_nbytes)}"
    text += f", {sizes.ratio:.2f}x, {sizes.bits_per_weight:.3f} bits per weight"
    parts = (f"{what.replace('_', ' ')} {nbytes:,}" for what, nbytes in measured.totals.parts.items() if nbytes)
    text += f". Bytes: {' + '.join(parts)} = {sizes.stored_nbytes:,}."
    return text if measured.kind == "qzc" else f"{text} {_general(measured)}"


def _general(measured: ModelStats) -> str:
    sizes = measured.totals.sizes
    general = [("gzip -6", sizes.gzip_ratio), ("zstd -3", sizes.zstd_ratio)]
    known = [f"{tool} {ratio:.2f}x" for tool, ratio in general if ratio is not None]
    return f"On the original bytes: {', '.join(known)}." if known else ""


def _lossless_sentences(measured: ModelStats) -> list[str]:
    """By dtype where the information sits, what it comes to at best, and what was reached."""
    from ..analysis.code_stats import sum_lossless

    by_dtype: dict[str, list[tuple[TensorStats, LosslessStats]]] = {}
    for tensor in measured.tensors:
        if tensor.sizes.lossless and not tensor.tied_to:
            by_dtype.setdefault(tensor.dtype, []).append((tensor, tensor.sizes.lossless))
    return [
        _lossless_sentence(
            dtype, sum(tensor.sizes.nbytes for tensor, _ in each), sum_lossless([one for _, one in each])
        )
        for dtype, each in sorted(by_dtype.items())
        if any(one.count for _, one in each)
    ]


def _lossless_sentence(dtype: str, nbytes: int, one: LosslessStats) -> str:
    reached = 8 * one.coded.nbytes / one.count
    text = f"{dtype}: {8 * nbytes / one.count:.4g} bits an element, bound {one.entropy:.3f}, reached {reached:.3f}"
    if one.fields is not None:
        text += "; entropy of " + ", ".join(f"the {kind} {bits:.3f}" for kind, bits in one.fields.by_kind.items())
    return f"{text}."


def _sampling(deep: DeepStats | None) -> list[str]:
    errors = [p.codes.error for p in deep.totals.precisions if p.codes.error] if deep else []
    if deep is None or deep.sample is None or not errors:
        return []
    return [
        f"Sampled: at most {deep.sample:,} weights of each tensor, in blocks of rows; sizes are estimates. Standard error of H0: "
        f"{max(errors):.4f} bits per code or less."
    ]


def _broken(measured: ModelStats) -> list[str]:
    broken = [tensor.name for tensor in measured.tensors if tensor.reason == "has NaN or Inf"]
    return [f"Not quantized, because of NaN or Inf: {', '.join(broken)}."] if broken else []


def _quality_warnings(precisions: list[ModelStats] | tuple[ModelStats, ...]) -> list[str]:
    """Low entropy is easily had by rounding most weights to zero: say so where it may have happened."""
    notes: list[str] = []
    coded = [tensor.sizes.codes for one in precisions for tensor in one.tensors if tensor.sizes.codes]
    if any(codes.args and codes.args.strategy == "tensor" and codes.args.scale_method == "absmax" for codes in coded):
        known = any(codes.snr_db is not None for codes in coded)
        shown = "see the SNR" if known else "`qzc stats` on the original shows the SNR"
        notes.append(
            "Note: one scale per tensor from its largest weight leaves most levels unused. The low entropy is lost "
            f"precision, not compressibility ({shown}); compare --strategy group."
        )
    for one in precisions:
        snrs = [tensor.sizes.codes.snr_db for tensor in one.tensors if tensor.sizes.codes]
        poor = sum(snr is not None and snr < POOR_SNR_DB for snr in snrs)
        if poor:
            at = f"At {one.bits} bits " if len(precisions) > 1 else "Note: "
            notes.append(f"{at}{poor} of {len(snrs)} quantized tensors have a weight SNR below {POOR_SNR_DB:.0f} dB.")
    return notes
