"""How the blocks of GGUF's quantized types split into planes of codes."""

from __future__ import annotations

from ..codec.gather import Walk
from ..codec.records import BYTES, Records, gathered
from .dtypes import bits_of, is_float

_Fields = tuple[tuple[int, int], ...]

_HALF: _Fields = ((8, 1), (8, 1))  # a float16: its low byte is noise, its high byte is not
_K_SCALES: _Fields = ((8, 4),) * 3  # 8 scales and 8 minima of 6 bits; the bytes of the first hold top bits of the last

# Blocks that have the high bits of their codes apart from the low ones: a plane of whole codes is smaller than two of their parts.


def _half(byte: int) -> tuple[Walk, ...]:
    return _bytes(byte, 1), _bytes(byte + 1, 1)


def _bytes(first: int, count: int) -> Walk:
    return (count,), (8, 8 * first, 8)


def _fifth(byte: int) -> Walk:
    """32 codes of 5 bits: their fifth bits in 4 bytes, then the lower four in nibbles of 16 bytes."""
    return (2, 16), (4, 8 * byte + 32, 4, 8), (1, 8 * byte, 16, 1)


_Q3_K = gathered(
    ((2, 4, 32), (2, 8 * 32, 256, 2, 8), (1, 0, 4, 1, 8)),
    ((2, 2, 4), (4, 8 * 96, 4, 32, 8), (2, 8 * 104, 4, 2, 8)),  # 16 scales of 6 bits
    *_half(108),
)
_Q5_K = gathered(
    *_half(0), *_half(2),
    _bytes(4, 4), _bytes(8, 4), _bytes(12, 4),
    ((4, 2, 32), (4, 8 * 48, 256, 4, 8), (1, 8 * 16, 2, 1, 8)),
)  # fmt: skip
_Q6_K = gathered(
    ((2, 2, 2, 32), (4, 0, 512, 4, 256, 8), (2, 8 * 128, 256, 4, 2, 8)),
    _bytes(192, 16),
    *_half(208),
)

# What a block consists of, from its first byte on. Plain types, and those that are not here, are split into bytes.
BLOCKS: dict[str, Records] = {
    "GGUF_Q4_0": Records((*_HALF, (4, 32))),
    "GGUF_Q4_1": Records((*_HALF, *_HALF, (4, 32))),
    "GGUF_Q5_0": gathered(*_half(0), _fifth(2)),
    "GGUF_Q5_1": gathered(*_half(0), *_half(2), _fifth(4)),
    "GGUF_Q8_0": Records((*_HALF, (8, 32))),
    "GGUF_Q8_1": Records(((8, 1),) * 8 + ((8, 32),)),
    "GGUF_Q2_K": Records(((8, 16), (2, 256), *_HALF, *_HALF)),  # a scale and a minimum of 4 bits in each byte
    "GGUF_Q3_K": _Q3_K,
    "GGUF_Q4_K": Records((*_HALF, *_HALF, *_K_SCALES, (4, 256))),
    "GGUF_Q5_K": _Q5_K,
    "GGUF_Q6_K": _Q6_K,
    "GGUF_Q8_K": Records(((8, 1),) * 4 + ((8, 256), (8, 32))),
    "GGUF_IQ4_NL": Records((*_HALF, (4, 32))),
    "GGUF_IQ4_XS": Records((*_HALF, (2, 8), (4, 8), (4, 256))),
    "GGUF_MXFP4": Records(((8, 1), (4, 32))),
    "GGUF_NVFP4": Records(((8, 4), (4, 64))),
    "GGUF_TQ1_0": Records(((8, 48), (8, 4), *_HALF)),  # five ternary codes in each byte, then four
    "GGUF_TQ2_0": Records(((2, 256), *_HALF)),
    # Codebook types: numbers of grid points, their high bits, signs and scales, all as bytes.
    "GGUF_IQ1_S": Records((*_HALF, (8, 32), (8, 16))),
    "GGUF_IQ1_M": Records(((8, 32), (8, 16), (8, 8))),
    "GGUF_IQ2_XXS": Records((*_HALF, (8, 64))),
    "GGUF_IQ2_XS": Records((*_HALF, (8, 64), (8, 8))),
    "GGUF_IQ2_S": Records((*_HALF, (8, 32), (8, 32), (8, 8), (8, 8))),
    "GGUF_IQ3_XXS": Records((*_HALF, (8, 64), (8, 32))),
    "GGUF_IQ3_S": Records((*_HALF, (8, 64), (8, 8), (8, 32), (8, 4))),
    "GGUF_Q1_0": Records((*_HALF, (8, 16))),
}


def block_records(dtype: str, nbytes: int) -> Records:
    """The split for `nbytes` bytes of a dtype as a GGUF file's members have it; single bytes where it is unknown or does not fit."""
    records = BLOCKS.get(dtype)
    if records is None:
        element_nbytes = bits_of(dtype, 8) // 8
        records = Records(((8, 1),) * element_nbytes, rotate=is_float(dtype) and element_nbytes > 1)
    return records if nbytes % records.span == 0 else BYTES
