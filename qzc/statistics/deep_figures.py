"""The figures of `deep_stats`: plain frozen data. docs/stats.md defines each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..analysis.code_models import CodeModels
from ..analysis.code_stats import CodeStats
from ..analysis.control import Law
from ..analysis.equal_snr import EqualSnr, RatePoint
from ..analysis.float_fields import FloatFields
from ..analysis.tensor_stats import Totals
from ..analysis.weight_fit import WeightFit

if TYPE_CHECKING:
    from .measure import ModelStats

CODERS = ("huffman_symbol", "huffman_byte", "ans", "zstd1_packed", "gzip6_packed")


@dataclass(frozen=True)
class CodeFigures:
    """The codes of a tensor, or of all, on grids of `bits` bits (None: as rules by name decide).

    count: weights. sizes: of the codes that were measured, `sizes.count` of them; in a file, if those are all. error: standard error of their entropy as that of all codes, in bits per code; 0 if all were measured. models: None
    if not asked for. huffman_nbytes: an ideal Huffman code per code, without its table; gzip_nbytes: gzip -6 of the packed
    codes; None if not asked for. histogram: how often each code occurs; empty in totals.
    """

    bits: int | None
    count: int
    sizes: CodeStats
    error: float = 0.0
    models: CodeModels | None = None
    huffman_nbytes: float | None = None
    gzip_nbytes: int | None = None
    histogram: tuple[int, ...] = ()

    @property
    def entropy(self) -> float:
        """Order 0, bits per code."""
        return self.sizes.entropy_bits / self.sizes.count if self.sizes.count else 0.0

    @property
    def coder_nbytes(self) -> dict[str, float]:
        """By coder what a file would hold for the codes, as far as it was measured."""
        found = {
            "huffman_symbol": self.huffman_nbytes,
            "huffman_byte": self.sizes.coded["huffman"].nbytes,
            "ans": self.sizes.final.nbytes,
            "zstd1_packed": self.sizes.packed_zstd_nbytes,
            "gzip6_packed": self.gzip_nbytes,
        }
        return {coder: nbytes for coder, nbytes in found.items() if nbytes is not None}

    def coded(self, coder: str) -> float | None:
        """Bits per code; None where it was not measured."""
        nbytes = self.coder_nbytes.get(coder)
        return None if nbytes is None else self.sizes.per_code(8 * nbytes)

    def efficiency(self, coder: str) -> float | None:
        """0 at log2(L), 1 at the order-0 entropy; None where there is nothing to gain."""
        return self.sizes.efficiency(self.coder_nbytes.get(coder))

    @property
    def snr_db(self) -> float | None:
        return self.sizes.snr_db

    def to_json(self) -> dict[str, Any]:
        """What `CodeStats.to_json` does not have."""
        return {
            "measured": self.sizes.count,
            "entropy_error": self.error,
            "models": plain(self.models),
            "coders": {
                coder: {"nbytes": nbytes, "bits_per_code": self.coded(coder), "efficiency": self.efficiency(coder)}
                for coder, nbytes in self.coder_nbytes.items()
            },
            "histogram": list(self.histogram),
        }


@dataclass(frozen=True)
class ControlFigures:
    """Weights drawn by an initialiser's law, or the trained ones (`law` None) to the same extent: how each compresses.

    nbytes, gzip_nbytes, zstd_nbytes: of the `measured` weights in the tensor's dtype. entropy: order-0, of their codes under
    the same grid, in bits per code; None for a tensor that has no grid.
    """

    law: Law | None
    measured: int
    nbytes: int
    gzip_nbytes: int | None
    zstd_nbytes: int
    entropy: float | None
    std: float

    @property
    def gzip_ratio(self) -> float | None:
        return self.nbytes / self.gzip_nbytes if self.gzip_nbytes else None

    @property
    def zstd_ratio(self) -> float | None:
        return self.nbytes / self.zstd_nbytes if self.zstd_nbytes else None

    def to_json(self) -> dict[str, Any]:
        return {**plain(self), "gzip6_ratio": self.gzip_ratio, "zstd3_ratio": self.zstd_ratio}


@dataclass(frozen=True)
class TensorFigures:
    """What is measured of one tensor besides its sizes in a file.

    measured: how many of its weights the figures are of; all of them unless it was sampled. tied_to: the tensor that it
    equals; it then has no figures and counts nowhere. codes: by precision.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parameters: int
    measured: int
    tied_to: str | None
    floats: FloatFields | None = None
    fit: WeightFit | None = None
    codes: tuple[CodeFigures, ...] = ()
    control: tuple[ControlFigures, ...] = ()

    def at(self, bits: int | None) -> CodeFigures | None:
        return next((codes for codes in self.codes if codes.bits == bits), None)

    def to_json(self) -> dict[str, Any]:
        """What does not depend on the precision."""
        return {
            "measured": self.measured,
            "floats": plain(self.floats),
            "fit": plain(self.fit),
            "control": [control.to_json() for control in self.control],
        }


@dataclass(frozen=True)
class Precision:
    """A whole model at one precision. file: what a pack gives, everything counted. codes: all codes together."""

    bits: int | None
    file: Totals
    codes: CodeFigures

    @property
    def _codes(self) -> CodeStats:
        assert self.file.sizes.codes is not None
        return self.file.sizes.codes

    @property
    def total_nbytes(self) -> int:
        return self.file.sizes.stored_nbytes

    @property
    def kept_nbytes(self) -> int:
        """Tensors that are not quantized, coded bit by bit or as they are."""
        lossless = self.file.sizes.lossless
        return self.file.parts["uncoded"] + (lossless.coded.nbytes if lossless else 0)

    def with_codes_of(self, nbytes: float) -> int:
        """The file if its codes took so many bytes, all else unchanged."""
        return round(self.total_nbytes - self._codes.final.nbytes + nbytes)

    @property
    def dense_nbytes(self) -> int:
        """The file with each code in exactly the bits of its grid."""
        return self.with_codes_of(self._codes.level_bits / 8)

    @property
    def packed_zstd_nbytes(self) -> int:
        return self.with_codes_of(self._codes.packed_zstd_nbytes or 0)

    @property
    def entropy_nbytes(self) -> int:
        return self.with_codes_of(self._codes.entropy_bits / 8)


@dataclass(frozen=True)
class GridCurve:
    """One kind of grid at several precisions, on a sample of rows: (SNR, bits per weight) with side information.

    fixed: codes of log2(L) bits, scales as they are. coded: codes at their order-0 entropy, tables counted, scales as coded.
    """

    grid: str
    bits: tuple[int, ...]
    fixed: tuple[RatePoint, ...]
    coded: tuple[RatePoint, ...]


@dataclass(frozen=True)
class DeepTotals:
    """All tensors together; second names of a tensor do not count. precisions: those at which tensors are quantized."""

    tensors: int
    parameters: int
    nbytes: int
    gzip_ratio: float | None
    zstd_ratio: float | None
    floats: FloatFields | None
    kurtosis: float | None
    beyond3: float | None
    beyond6: float | None
    fit_loss: Mapping[str, float]
    control: tuple[ControlFigures, ...]
    precisions: tuple[Precision, ...]

    def at(self, bits: int | None) -> Precision | None:
        return next((precision for precision in self.precisions if precision.bits == bits), None)

    def to_json(self) -> dict[str, Any]:
        """What does not depend on the precision."""
        return {
            "floats": plain(self.floats),
            "kurtosis": self.kurtosis,
            "beyond3": self.beyond3,
            "beyond6": self.beyond6,
            "fit_loss": plain(self.fit_loss),
            "control": [control.to_json() for control in self.control],
        }


@dataclass(frozen=True)
class DeepStats:
    """Everything `deep_stats` measures.

    bits: the precisions, None for what rules by name or nothing at all decide. sample: weights measured per tensor at most,
    None for all. tensors: by name. precisions: for each of `bits` what a pack gives, as `stats` says it.
    """

    source: Path
    bits: tuple[int | None, ...]
    sample: int | None
    tensors: tuple[TensorFigures, ...]
    precisions: tuple[ModelStats, ...]
    totals: DeepTotals
    curves: tuple[GridCurve, ...]
    equal_snr: tuple[EqualSnr, ...]

    def to_json(self) -> dict[str, Any]:
        """A document of the schema `qzc.stats/2`: figures that do not exist are null."""
        from .document import stats_document

        return stats_document(self.precisions, self)


def plain(value: Any) -> Any:
    """Dataclasses as dictionaries, tuples as lists, numbers that JSON does not know as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return value if isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
