"""What `qzc stats` reports: exact sizes in bytes, and the ratios and bits that follow from them.

`docs/stats.md` defines every figure. Sizes are kept apart from names so that a total is computed like any tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, TypeVar

from ..codec.tensor import QuantizationArgs
from .distortion import Distortion

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
    scale_nbytes: int
    zero_point: CodedSize = field(default_factory=CodedSize)
    class_map_nbytes: int = 0
    distortion: Distortion | None = None

    @property
    def side_nbytes(self) -> int:
        """What a decoder needs besides the codes: scales, zero points, class maps."""
        return self.scale_nbytes + self.zero_point.nbytes + self.class_map_nbytes

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
            "coded": {way: _coded_json(size, self.count) for way, size in self.coded.items()},
            "scale_nbytes": self.scale_nbytes,
            "zero_point_nbytes": self.zero_point.nbytes,
            "class_map_nbytes": self.class_map_nbytes,
            "side_bits_per_weight": self.per_code(8 * self.side_nbytes),
            "snr_db": self.snr_db,
            "weight_energy": self.distortion.weight_energy if self.distortion else None,
            "error_energy": self.distortion.error_energy if self.distortion else None,
        }


@dataclass(frozen=True)
class Sizes:
    """What tensors cost. nbytes: in their own dtype, before any coding; stored_nbytes: as coded, or as they are."""

    parameters: int
    nbytes: int
    stored_nbytes: int
    gzip_nbytes: int | None = None
    zstd_nbytes: int | None = None
    codes: CodeStats | None = None

    @property
    def bits_per_weight(self) -> float | None:
        return 8 * self.stored_nbytes / self.parameters if self.parameters else None

    @property
    def gzip_ratio(self) -> float | None:
        """Original size over compressed size, as all ratios here: above 1 is a gain."""
        return self.nbytes / self.gzip_nbytes if self.gzip_nbytes else None

    @property
    def zstd_ratio(self) -> float | None:
        return self.nbytes / self.zstd_nbytes if self.zstd_nbytes else None

    @property
    def ratio(self) -> float | None:
        return self.nbytes / self.stored_nbytes if self.stored_nbytes else None

    @property
    def ratio_to_fp32(self) -> float | None:
        return 4 * self.parameters / self.stored_nbytes if self.stored_nbytes else None

    def to_json(self) -> dict[str, Any]:
        return {
            "parameters": self.parameters,
            "nbytes": self.nbytes,
            "gzip6_nbytes": self.gzip_nbytes,
            "gzip6_ratio": self.gzip_ratio,
            "zstd3_nbytes": self.zstd_nbytes,
            "zstd3_ratio": self.zstd_ratio,
            "stored_nbytes": self.stored_nbytes,
            "bits_per_weight": self.bits_per_weight,
            "ratio": self.ratio,
            "ratio_to_fp32": self.ratio_to_fp32,
            "codes": None if self.codes is None else self.codes.to_json(),
        }


@dataclass(frozen=True)
class TensorStats:
    """One tensor. dtype in safetensors' names; reason: why it is not coded, or None; tied_to: the name it is stored as."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sizes: Sizes
    reason: str | None = None
    tied_to: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "reason": self.reason,
            "tied_to": self.tied_to,
            **self.sizes.to_json(),
        }


@dataclass(frozen=True)
class Totals:
    """All tensors together.

    parts: what the bytes are, adding up to `sizes.stored_nbytes`. For a `.qzc` these are all bytes of its files; for a
    `.safetensors` the parts that a pack would write for the tensors, without header and checksums.
    """

    tensors: int
    coded_tensors: int
    sizes: Sizes
    parts: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        return {
            "tensors": self.tensors,
            "coded_tensors": self.coded_tensors,
            **self.sizes.to_json(),
            "parts": dict(self.parts),
        }


def totals(tensors: Sequence[TensorStats], overhead: Mapping[str, int] | None = None) -> Totals:
    """Add up tensors; second names of a tensor (`tied_to`) do not count.

    overhead: for a `.qzc`, the bytes of its files that belong to no tensor: `header`, `checksums`, and `tables`, which is
    then the size of the banks and takes the place of the tensors' own tables (tensors may share a table, and a bank
    may hold tables that no chunk names).
    """
    stored = [tensor for tensor in tensors if tensor.tied_to is None]
    sizes = [tensor.sizes for tensor in stored]
    codes = [size.codes for size in sizes if size.codes is not None]
    coded = sum((code.final + code.zero_point for code in codes), CodedSize())
    parts = {
        "payload": coded.payload,
        "index": coded.index,
        "gaps": coded.gaps,
        "scales": sum(code.scale_nbytes for code in codes),
        "class_maps": sum(code.class_map_nbytes for code in codes),
        "tables": coded.tables,
        "uncoded": sum(size.stored_nbytes for size in sizes if size.codes is None),
        **(overhead or {}),
    }
    total = Sizes(
        parameters=sum(size.parameters for size in sizes),
        nbytes=sum(size.nbytes for size in sizes),
        stored_nbytes=sum(parts.values()),
        gzip_nbytes=_sum_known(size.gzip_nbytes for size in sizes),
        zstd_nbytes=_sum_known(size.zstd_nbytes for size in sizes),
        codes=_sum_codes(codes) if codes else None,
    )
    return Totals(len(stored), len(codes), total, parts)


def _sum_codes(codes: Sequence[CodeStats]) -> CodeStats:
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
        packed_zstd_nbytes=_sum_known(code.packed_zstd_nbytes for code in codes),
        coded={way: sum((code.coded[way] for code in codes), CodedSize()) for way in ways},
        scale_nbytes=sum(code.scale_nbytes for code in codes),
        zero_point=sum((code.zero_point for code in codes), CodedSize()),
        class_map_nbytes=sum(code.class_map_nbytes for code in codes),
        distortion=sum(distortions, Distortion()) if len(distortions) == len(codes) else None,
    )


def _common(values: Iterable[T]) -> T | None:
    first, *others = values
    return first if all(value == first for value in others) else None


def _sum_known(values: Iterable[int | None]) -> int | None:
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def _coded_json(size: CodedSize, count: int) -> dict[str, Any]:
    return {
        "coders": list(size.coders),
        "nbytes": size.nbytes,
        "bits_per_code": 8 * size.nbytes / count if count else None,
        "payload_nbytes": size.payload,
        "index_nbytes": size.index,
        "table_nbytes": size.tables,
        "gap_nbytes": size.gaps,
    }
