"""Sizes of integer codes, of those of a tensor or of many: exact bytes, and the bits and ratios that follow from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import Any, TypeVar

from ..codec.tensor import QuantizationArgs
from .distortion import Distortion
from .efficiency import efficiency
from .float_fields import FloatFields, add_fields

T = TypeVar("T")


@dataclass(frozen=True)
class CodedSize:
    """Bytes of integers in coded form. `coders`: names of the coders that the chunks use, sorted."""

    payload: int = 0
    index: int = 0
    tables: int = 0
    gaps: int = 0
    """Zero bytes that bring chunks to aligned places."""
    coders: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        return self.payload + self.index + self.tables + self.gaps

    def __add__(self, other: CodedSize) -> CodedSize:
        return CodedSize(
            self.payload + other.payload,
            self.index + other.index,
            self.tables + other.tables,
            self.gaps + other.gaps,
            tuple(sorted({*self.coders, *other.coders})),
        )

    def scaled(self, factor: float) -> CodedSize:
        """Of `factor` times as many integers, about."""
        payload, index, tables, gaps = (round(n * factor) for n in (self.payload, self.index, self.tables, self.gaps))
        return CodedSize(payload, index, tables, gaps, self.coders)


@dataclass(frozen=True)
class CodeStats:
    """Figures of the codes of a quantized tensor, or of many together.

    level_bits, entropy_bits: bits of all codes, `count * log2(levels)` and `count * H0`; over many tensors the sums.
    coded: sizes of the codes by way of coding: "huffman" and "ans" for what a pack would write, "file" for what a file
    holds. args, levels, levels_used: None where the tensors of a total differ.
    """

    args: QuantizationArgs | None
    count: int
    levels: int | None
    levels_used: int | None
    level_bits: float
    entropy_bits: float
    packed_nbytes: int
    packed_zstd_nbytes: int | None
    coded: Mapping[str, CodedSize]
    scale: CodedSize
    zero_point: CodedSize = field(default_factory=CodedSize)
    class_map_nbytes: int = 0
    distortion: Distortion | None = None

    @property
    def side_nbytes(self) -> int:
        """What a decoder needs besides the codes: scales, zero points, class maps."""
        return self.scale.nbytes + self.zero_point.nbytes + self.class_map_nbytes

    @property
    def final(self) -> CodedSize:
        """The size that counts: what the file holds, or what `ans` makes of the codes."""
        return self.coded["file"] if "file" in self.coded else self.coded["ans"]

    def per_code(self, bits: float) -> float | None:
        """Bits per code; None where there are no codes."""
        return bits / self.count if self.count else None

    def coded_bits(self, way: str) -> float | None:
        """Bits per code of one way of coding; None where it was not measured."""
        return self.per_code(8 * self.coded[way].nbytes) if way in self.coded else None

    @property
    def packed_zstd_bits(self) -> float | None:
        return None if self.packed_zstd_nbytes is None else self.per_code(8 * self.packed_zstd_nbytes)

    @property
    def snr_db(self) -> float | None:
        """Weight SNR in dB; None where it is not known or not a number (no error at all, or no weights but zeros)."""
        if self.distortion is None or not isfinite(self.distortion.snr_db):
            return None
        return self.distortion.snr_db

    def efficiency(self, nbytes: float | None) -> float | None:
        """Of a coder that takes `nbytes` for these codes: 0 at log2(L) bits per code, 1 at the entropy."""
        if nbytes is None or not self.count:
            return None
        return efficiency(8 * nbytes / self.count, self.entropy_bits / self.count, self.level_bits / self.count)

    def scaled(self, factor: float) -> CodeStats:
        """The figures of `factor` times as many codes, from these as a sample of them."""
        if factor == 1.0:
            return self
        energies = self.distortion or Distortion()
        distortion = Distortion(energies.weight_energy * factor, energies.error_energy * factor)
        return replace(
            self,
            count=round(self.count * factor),
            level_bits=self.level_bits * factor,
            entropy_bits=self.entropy_bits * factor,
            packed_nbytes=round(self.packed_nbytes * factor),
            packed_zstd_nbytes=None if self.packed_zstd_nbytes is None else round(self.packed_zstd_nbytes * factor),
            coded={way: size.scaled(factor) for way, size in self.coded.items()},
            scale=self.scale.scaled(factor),
            zero_point=self.zero_point.scaled(factor),
            class_map_nbytes=round(self.class_map_nbytes * factor),
            distortion=distortion if self.distortion else None,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "grid": None if self.args is None else asdict(self.args),
            "count": self.count,
            "levels": self.levels,
            "levels_used": self.levels_used,
            "log2_levels": self.per_code(self.level_bits),
            "entropy_bits_per_code": self.per_code(self.entropy_bits),
            "packed_nbytes": self.packed_nbytes,
            "packed_zstd1_nbytes": self.packed_zstd_nbytes,
            "packed_zstd1_bits_per_code": self.packed_zstd_bits,
            "coded": {way: self._coded_json(size) for way, size in self.coded.items()},
            "scale_nbytes": self.scale.nbytes,
            "zero_point_nbytes": self.zero_point.nbytes,
            "class_map_nbytes": self.class_map_nbytes,
            "side_bits_per_weight": self.per_code(8 * self.side_nbytes),
            "snr_db": self.snr_db,
            "weight_energy": self.distortion.weight_energy if self.distortion else None,
            "error_energy": self.distortion.error_energy if self.distortion else None,
        }

    def _coded_json(self, size: CodedSize) -> dict[str, Any]:
        return {
            "coders": list(size.coders),
            "nbytes": size.nbytes,
            "bits_per_code": self.per_code(8 * size.nbytes),
            "efficiency": self.efficiency(size.nbytes),
            "payload_nbytes": size.payload,
            "index_nbytes": size.index,
            "table_nbytes": size.tables,
            "gap_nbytes": size.gaps,
        }


@dataclass(frozen=True)
class LosslessStats:
    """Figures of a tensor that is coded bit by bit, or of many together.

    count: elements. planes: of each plane its bits per code, and the number of codes; empty for many tensors. entropy_bits: of the codes
    of all planes, each plane with one table: a bound for coders that look at nothing else, which tables for parts of a plane
    can pass. coded: what the planes take. fields: of floats, where their information sits.
    """

    count: int
    planes: tuple[tuple[int, int], ...]
    entropy_bits: float
    coded: CodedSize
    fields: FloatFields | None = None

    @property
    def entropy(self) -> float | None:
        """Bits per element."""
        return self.entropy_bits / self.count if self.count else None

    def to_json(self) -> dict[str, Any]:
        return {
            "planes": [{"bits": bits, "codes": count} for bits, count in self.planes],
            "entropy_nbytes": self.entropy_bits / 8,
            "nbytes": self.coded.nbytes,
            "payload_nbytes": self.coded.payload,
            "index_nbytes": self.coded.index,
            "table_nbytes": self.coded.tables,
            "gap_nbytes": self.coded.gaps,
            "coders": list(self.coded.coders),
            "fields": None if self.fields is None else self.fields.by_kind,
        }


def sum_lossless(parts: Sequence[LosslessStats]) -> LosslessStats:
    """Fields are those of the dtype that most weights have."""
    return LosslessStats(
        sum(part.count for part in parts),
        (),
        sum(part.entropy_bits for part in parts),
        sum((part.coded for part in parts), CodedSize()),
        add_fields(part.fields for part in parts if part.fields is not None),
    )


def sum_codes(codes: Sequence[CodeStats]) -> CodeStats:
    ways = [way for way in codes[0].coded if all(way in code.coded for code in codes)]
    distortions = [code.distortion for code in codes if code.distortion is not None]
    return CodeStats(
        args=_common(code.args for code in codes),
        count=sum(code.count for code in codes),
        levels=_common(code.levels for code in codes),
        levels_used=_common(code.levels_used for code in codes),
        level_bits=sum(code.level_bits for code in codes),
        entropy_bits=sum(code.entropy_bits for code in codes),
        packed_nbytes=sum(code.packed_nbytes for code in codes),
        packed_zstd_nbytes=sum_known(code.packed_zstd_nbytes for code in codes),
        coded={way: sum((code.coded[way] for code in codes), CodedSize()) for way in ways},
        scale=sum((code.scale for code in codes), CodedSize()),
        zero_point=sum((code.zero_point for code in codes), CodedSize()),
        class_map_nbytes=sum(code.class_map_nbytes for code in codes),
        distortion=sum(distortions, Distortion()) if len(distortions) == len(codes) else None,
    )


def _common(values: Iterable[T]) -> T | None:
    first, *others = values
    return first if all(value == first for value in others) else None


def sum_known(values: Iterable[int | None]) -> int | None:
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)
