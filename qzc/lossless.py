"""Tensors that stay as they are, bit by bit: whether and how they are entropy-coded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .codec import scaled_palette
from .codec.choose_records import choose
from .codec.palette import indices
from .codec.planes import EncodedTensor, encode_bytes, encode_palette, encode_scaled
from .codec.records import BYTES, Records, split
from .codec.run_map import RunMap
from .codec.scaled_palette import ScaledPalette
from .codec.tensor import matrix_shape
from .formats.dtypes import bits_of, is_float
from .formats.profile import CodedTensor

MIN_NBYTES = 1 << 14
"""Beside quantized tensors: what smaller ones could save is not worth waiting for the compilation of other coders."""


@dataclass(frozen=True, eq=False)
class Lossless:
    """How a tensor is coded without loss.

    coders: for each plane `ans` where entropy coding is worth its time, else `raw`. palette: its values, uint8 `[values,
    bytes]`, if they are few. scaled: the values, if they are few but for scales. nbytes: estimated.
    """

    records: Records
    coders: tuple[str, ...]
    palette: NDArray[np.uint8] | None
    nbytes: int
    scaled: ScaledPalette | None = None

    def entry(self, dtype: str, shape: tuple[int, ...], nbytes: int) -> CodedTensor:
        """What the header says of such a tensor, of `nbytes` bytes."""
        if self.scaled is not None:
            values, group = len(self.scaled.values), self.scaled.group
            return CodedTensor(dtype, shape, None, self.records, nbytes, values, group=group)
        palette = 0 if self.palette is None else len(self.palette)
        return CodedTensor(dtype, shape, None, self.records, nbytes, palette)

    def split(self, raw: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """The packed planes of the bytes of a tensor."""
        if self.scaled is not None:
            return scaled_palette.split(raw, self.scaled)
        if self.palette is not None:
            return [indices(raw, self.palette), self.palette.reshape(-1)]
        return split(raw, self.records)


def plan_lossless(
    raw: NDArray[np.uint8],
    dtype: str,
    hints: Sequence[Records] = (),
    shape: tuple[int, ...] = (),
    least_nbytes: int = MIN_NBYTES,
) -> Lossless | None:
    """How to code the bytes of a tensor; None where that would not make it smaller. hints: other splits to try. shape: tells
    which elements may share a scale. least_nbytes: of a tensor that is looked at.
    """
    if raw.size < least_nbytes:
        return None
    choice = choose(raw, dtype, hints)
    if choice.palette is None:
        scaled = scaled_palette.find(raw, dtype, matrix_shape(shape)[1])
        if scaled is not None and scaled.nbytes < choice.nbytes:
            return Lossless(scaled.records, ("ans",), None, scaled.nbytes, scaled)
    if set(choice.coders) == {"raw"} and choice.palette is None:
        return None
    return Lossless(choice.records, choice.coders, choice.palette, choice.nbytes)


def as_bytes(nbytes: int) -> Lossless:
    """A tensor that no coding makes smaller, as one plane of bytes."""
    return Lossless(BYTES, ("raw",), None, nbytes)


def delta_records(dtype: str) -> Records:
    """How floats are split where they are compared with those of a base: every byte on its own, for any may be zero."""
    size = max(1, bits_of(dtype, default=8) // 8)
    return Records(((8, 1),) * size, rotate=is_float(dtype) and size in (2, 4, 8))


def encode_lossless(
    raw: NDArray[np.uint8],
    plan: Lossless,
    coder: str,
    chunk_codes: int,
    *,
    base: NDArray[np.uint8] | None = None,
    dtype: str = "U8",
    run: RunMap = map,
    verify: bool = True,
) -> tuple[EncodedTensor, bool]:
    """The coded tensor, and whether it is a delta to `base` (as many bytes): only if that makes it smaller."""
    if plan.scaled is not None:
        planes = plan.split(raw)
        return encode_scaled(planes, raw.size, plan.scaled, coder, chunk_codes, run=run, verify=verify), False
    if plan.palette is not None:
        packed = indices(raw, plan.palette)
        return encode_palette(packed, raw.size, plan.palette, coder, chunk_codes, run=run, verify=verify), False
    coders = [coder if each == "ans" else each for each in plan.coders]
    own = encode_bytes(raw, plan.records, coders, chunk_codes, run=run, verify=verify)
    if base is None:
        return own, False
    records = delta_records(dtype)
    delta = encode_bytes(raw, records, [coder] * len(records.fields), chunk_codes, base=base, run=run, verify=verify)
    return (delta, True) if delta.nbytes < own.nbytes else (own, False)
