"""What `qzc stats` reports: exact sizes in bytes, and the ratios and bits that follow from them.

`docs/stats.md` defines every figure. Sizes are kept apart from names so that a total is computed like any tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .code_stats import CodedSize, CodeStats, LosslessStats, sum_codes, sum_known, sum_lossless


@dataclass(frozen=True)
class Sizes:
    """What tensors cost. nbytes: in their own dtype, before any coding; stored_nbytes: as coded, or as they are.

    codes: of quantized tensors; lossless: of those that are coded bit by bit; rated: whether it is neither, for it was
    quantized at a rate.
    """

    parameters: int
    nbytes: int
    stored_nbytes: int
    gzip_nbytes: int | None = None
    zstd_nbytes: int | None = None
    codes: CodeStats | None = None
    lossless: LosslessStats | None = None
    rated: bool = False

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

    @property
    def ratio_to_fp16(self) -> float | None:
        return 2 * self.parameters / self.stored_nbytes if self.stored_nbytes else None

    def before_json(self) -> dict[str, Any]:
        """What is known before any coding of ours."""
        return {
            "parameters": self.parameters,
            "nbytes": self.nbytes,
            "gzip6_nbytes": self.gzip_nbytes,
            "gzip6_ratio": self.gzip_ratio,
            "zstd3_nbytes": self.zstd_nbytes,
            "zstd3_ratio": self.zstd_ratio,
        }

    def coded_json(self) -> dict[str, Any]:
        """What it comes to at one precision."""
        return {
            "stored_nbytes": self.stored_nbytes,
            "bits_per_weight": self.bits_per_weight,
            "ratio": self.ratio,
            "ratio_to_fp32": self.ratio_to_fp32,
            "ratio_to_fp16": self.ratio_to_fp16,
            "codes": None if self.codes is None else self.codes.to_json(),
            "lossless": None if self.lossless is None else self.lossless.to_json(),
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


@dataclass(frozen=True)
class Totals:
    """All tensors together.

    parts: what the bytes are, adding up to `sizes.stored_nbytes`: all bytes of the files.
    """

    tensors: int
    coded_tensors: int
    sizes: Sizes
    parts: Mapping[str, int]


def totals(tensors: Sequence[TensorStats], overhead: Mapping[str, int] | None = None) -> Totals:
    """Add up tensors; second names of a tensor (`tied_to`) do not count.

    overhead: the bytes of the files that belong to no tensor: `header`, `checksums` .., and those that take the place of
    what the tensors know of: `index`, and `tables`, the size of the banks (which may hold tables that no chunk names).
    """
    stored = [tensor for tensor in tensors if tensor.tied_to is None]
    sizes = [tensor.sizes for tensor in stored]
    codes = [size.codes for size in sizes if size.codes is not None]
    bitwise = sum_lossless([size.lossless for size in sizes if size.lossless is not None])
    scales = sum((code.scale for code in codes), CodedSize())
    coded = sum((code.final + code.zero_point for code in codes), CodedSize())
    every = coded + scales + bitwise.coded
    rated = [size.stored_nbytes for size in sizes if size.rated]
    kept = (size for size in sizes if size.codes is None and size.lossless is None and not size.rated)
    parts = {
        **({"rated": sum(rated)} if rated else {}),
        "payload": coded.payload,
        "scales": scales.payload,
        "lossless": bitwise.coded.payload,
        "index": every.index,
        "gaps": every.gaps,
        "class_maps": sum(code.class_map_nbytes for code in codes),
        "tables": every.tables,
        "uncoded": sum(size.stored_nbytes for size in kept),
        **(overhead or {}),
    }
    total = Sizes(
        parameters=sum(size.parameters for size in sizes),
        nbytes=sum(size.nbytes for size in sizes),
        stored_nbytes=sum(parts.values()),
        gzip_nbytes=sum_known(size.gzip_nbytes for size in sizes),
        zstd_nbytes=sum_known(size.zstd_nbytes for size in sizes),
        codes=sum_codes(codes) if codes else None,
        lossless=bitwise if any(size.lossless is not None for size in sizes) else None,
    )
    return Totals(len(stored), len(codes) + len(rated), total, parts)
