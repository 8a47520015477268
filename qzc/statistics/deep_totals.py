"""From the figures of tensors to those of a model: sums over tensors, and ratios and bits formed from the sums."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..analysis.code_models import combine
from ..analysis.code_stats import CodeStats, sum_known
from ..analysis.control import Law
from ..analysis.float_fields import add_fields
from ..analysis.weight_fit import WeightFit, mean_fit
from .deep_figures import CodeFigures, ControlFigures, DeepTotals, Precision, TensorFigures
from .measure import ModelStats


def deep_totals(tensors: Sequence[TensorFigures], precisions: Sequence[ModelStats]) -> DeepTotals:
    """precisions: the files that the tensors make."""
    stored = [tensor for tensor in tensors if tensor.tied_to is None]
    fits = [tensor.fit for tensor in stored if tensor.fit is not None and len(tensor.shape) > 1]
    before = precisions[0].totals
    found = (_precision(stored, one) for one in precisions)
    return DeepTotals(
        tensors=before.tensors,
        parameters=before.sizes.parameters,
        nbytes=before.sizes.nbytes,
        gzip_ratio=before.sizes.gzip_ratio,
        zstd_ratio=before.sizes.zstd_ratio,
        floats=add_fields(tensor.floats for tensor in stored if tensor.floats is not None),
        kurtosis=_mean((fit.kurtosis, fit.count) for fit in fits),
        beyond3=_mean((fit.beyond3, fit.count) for fit in fits),
        beyond6=_mean((fit.beyond6, fit.count) for fit in fits),
        fit_loss=mean_fit(_weighted(tensor) for tensor in stored if len(tensor.shape) > 1 and tensor.fit),
        control=_control(stored),
        precisions=tuple(one for one in found if one is not None),
    )


def _weighted(tensor: TensorFigures) -> WeightFit:
    assert tensor.fit is not None
    return replace(tensor.fit, count=tensor.parameters)


def _precision(tensors: Sequence[TensorFigures], file: ModelStats) -> Precision | None:
    each = [codes for tensor in tensors if (codes := tensor.at(file.bits)) is not None]
    sizes = file.totals.sizes.codes
    return Precision(file.bits, file.totals, _sum_codes(each, file, sizes)) if each and sizes else None


def _sum_codes(codes: Sequence[CodeFigures], file: ModelStats, sizes: CodeStats) -> CodeFigures:
    """Tensors of different sampling rates weigh by their own sizes. sizes: of all codes in the file."""
    scales = [one.count / one.sizes.count for one in codes]
    count = sum(one.count for one in codes)
    huffman = [None if c.huffman_nbytes is None else c.huffman_nbytes * s for c, s in zip(codes, scales, strict=True)]
    gzipped = [None if c.gzip_nbytes is None else round(c.gzip_nbytes * s) for c, s in zip(codes, scales, strict=True)]
    models = [replace(one.models, count=one.count) for one in codes if one.models is not None]
    return CodeFigures(
        bits=file.bits,
        count=count,
        sizes=sizes,
        error=sum((one.error * one.count) ** 2 for one in codes) ** 0.5 / count,
        models=combine(models) if len(models) == len(codes) else None,
        huffman_nbytes=None if None in huffman else sum(n for n in huffman if n is not None),
        gzip_nbytes=sum_known(gzipped),
    )


def _control(tensors: Sequence[TensorFigures]) -> tuple[ControlFigures, ...]:
    found: dict[Law | None, list[ControlFigures]] = {}
    for tensor in tensors:
        for one in tensor.control:
            found.setdefault(one.law, []).append(one)
    return tuple(_sum_control(law, ones) for law, ones in found.items())


def _sum_control(law: Law | None, ones: Sequence[ControlFigures]) -> ControlFigures:
    return ControlFigures(
        law,
        sum(one.measured for one in ones),
        sum(one.nbytes for one in ones),
        sum_known(one.gzip_nbytes for one in ones),
        sum(one.zstd_nbytes for one in ones),
        _mean((one.entropy, one.measured) for one in ones),
        (_mean((one.std**2, one.measured) for one in ones) or 0.0) ** 0.5,
    )


def _mean(values: Iterable[tuple[float | None, int]]) -> float | None:
    """Over what is known, by weights; None if nothing is."""
    known = [(value, weight) for value, weight in values if value is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None
