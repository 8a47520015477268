"""Where the information of floats sits: entropy of each bit plane and of sign, exponent and mantissa.

Histograms of the 16-bit words of an element hold all of these figures at once, and add up over pieces of a tensor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

from ..codec.errors import UnsupportedError
from .entropy import shannon_entropy

# safetensors name -> bits of exponent and mantissa
FORMATS: dict[str, tuple[int, int]] = {
    "F64": (11, 52),
    "F32": (8, 23),
    "F16": (5, 10),
    "BF16": (8, 7),
    "F8_E4M3": (4, 3),
    "F8_E5M2": (5, 2),
    "F8_E4M3FNUZ": (4, 3),
    "F8_E5M2FNUZ": (5, 2),
}
_PIECE = 1 << 18  # elements counted at a time
_LOG_2 = log(2.0)
_NOISE = 0.002  # bits by which a plane may be below 1 and still count as noise,
_CHANCE = 8.0  # or so many times what chance takes away


@dataclass(frozen=True)
class Field:
    """A run of bits of a float. `first`: its highest bit, counted from the sign (0).

    entropy: order-0 (plug-in) entropy in bits per element of these bits taken together. bias: by how much that estimate
    is too low, to first order ((used values - 1) / (2 n ln 2)); where it is not far below the entropy there are too few
    elements to tell.
    """

    name: str
    first: int
    bits: int
    entropy: float
    bias: float


@dataclass(frozen=True)
class FloatFields:
    """The figures of a tensor of floats. planes: entropy of each bit alone, from the sign down to the last mantissa bit.

    fields: sign, exponent and pieces of the mantissa (10 bits of an F16, else at most 8), highest first.
    noise: for each plane whether it is as good as coin tosses (0.998 bits), 0 or 1; over many tensors the share of elements.
    together: entropy of sign, exponent and the first mantissa piece taken as one symbol, with its bias (the top word of
    an F32 is the BF16 that truncation would make of it).
    """

    dtype: str
    count: int
    planes: tuple[float, ...]
    fields: tuple[Field, ...]
    together: Field
    noise: tuple[float, ...]

    @property
    def bits(self) -> float:
        """Sum of the fields' entropies: bits per element where each field has a coder of its own."""
        return sum(field.entropy for field in self.fields)

    @property
    def by_kind(self) -> dict[str, float]:
        """Bits of entropy per element of `sign`, `exponent` and `mantissa`; the pieces of a mantissa are added up."""
        found = dict.fromkeys(("sign", "exponent", "mantissa"), 0.0)
        for field in self.fields:
            found[field.name.partition(" ")[0]] += field.entropy
        return found

    @property
    def noise_planes(self) -> int:
        """How many bit planes are noise, for most elements."""
        return sum(share > 0.5 for share in self.noise)


def count_words(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.int64]:
    """Histograms of the words of each element: int64 `[words, 2**word_bits]`, the most significant word first.

    raw: uint8 `[n]`, the little-endian bytes of whole elements of `dtype` (a safetensors name). Words have 16 bits, or 8
    for 8-bit floats. Histograms of pieces of a tensor add up. Raises UnsupportedError for what has no such fields.
    """
    exponent, mantissa = _format(dtype)
    nbytes = (1 + exponent + mantissa) // 8
    width = min(nbytes, 2)
    words = raw.view(np.uint8 if width == 1 else np.dtype("<u2")).reshape(-1, nbytes // width)
    counts = np.zeros((words.shape[1], 1 << 8 * width), np.int64)
    for start in range(0, len(words), _PIECE):
        piece = words[start : start + _PIECE]
        for word, column in enumerate(reversed(range(words.shape[1]))):
            counts[word] += np.bincount(piece[:, column], minlength=counts.shape[1])
    return counts


def float_fields(counts: NDArray[np.int64], dtype: str) -> FloatFields:
    """The figures of the elements that `count_words` counted."""
    exponent, mantissa = _format(dtype)
    n, word_bits = int(counts[0].sum()), counts.shape[1].bit_length() - 1
    planes = [
        shannon_entropy(_bits_of(word, word_bits, shift, 1)) for word in counts for shift in reversed(range(word_bits))
    ]
    fields = []
    for name, first, bits in _layout(exponent, mantissa):
        shift = word_bits - first % word_bits - bits
        fields.append(_field(name, first, bits, _bits_of(counts[first // word_bits], word_bits, shift, bits), n))
    first_piece = min(word_bits - 1 - exponent, mantissa)
    together = _field("together", 0, 1 + exponent + first_piece, counts[0], n)
    least = 1.0 - max(_NOISE, _CHANCE / (2 * n * _LOG_2)) if n else 1.0
    noise = tuple(float(n > 0 and plane >= least) for plane in planes)
    return FloatFields(dtype, n, tuple(planes), tuple(fields), together, noise)


def add_fields(parts: Iterable[FloatFields]) -> FloatFields | None:
    """Mean over tensors of one dtype, weighted by their elements: what coding each by its own statistics takes.

    The parts that have the most elements in common decide the dtype; None without parts.
    """
    parts = list(parts)
    if not parts:
        return None
    sizes: dict[str, int] = {}
    for part in parts:
        sizes[part.dtype] = sizes.get(part.dtype, 0) + part.count
    dtype = max(sizes, key=lambda name: sizes[name])
    chosen = [part for part in parts if part.dtype == dtype and part.count]
    if not chosen:
        return None
    total = sum(part.count for part in chosen)

    def mean(values: Iterable[float]) -> float:
        return sum(value * part.count for value, part in zip(values, chosen, strict=True)) / total

    def merged(fields: list[Field]) -> Field:
        one = fields[0]
        return Field(one.name, one.first, one.bits, mean(f.entropy for f in fields), mean(f.bias for f in fields))

    return FloatFields(
        dtype,
        total,
        tuple(mean(part.planes[i] for part in chosen) for i in range(len(chosen[0].planes))),
        tuple(merged([part.fields[i] for part in chosen]) for i in range(len(chosen[0].fields))),
        merged([part.together for part in chosen]),
        tuple(mean(part.noise[i] for part in chosen) for i in range(len(chosen[0].noise))),
    )


def _format(dtype: str) -> tuple[int, int]:
    if dtype not in FORMATS:
        raise UnsupportedError(f"{dtype} has no sign, exponent and mantissa to look at; known are {', '.join(FORMATS)}")
    return FORMATS[dtype]


def _layout(exponent: int, mantissa: int) -> list[tuple[str, int, int]]:
    """Fields as (name, first bit, bits). No piece of the mantissa crosses a byte, so none crosses a word."""
    fields = [("sign", 0, 1), ("exponent", 1, exponent)]
    at, end = 1 + exponent, 1 + exponent + mantissa
    while at < end:
        # Up to the next byte; where a word has room for less than a byte beside the exponent, all of that.
        bits = min(8 - at % 8, end - at) if at > 1 + exponent or end > 16 else end - at
        first, last = at - exponent, at - exponent + bits - 1
        fields.append((f"mantissa {first}" if first == last else f"mantissa {first}-{last}", at, bits))
        at += bits
    return fields


def _bits_of(counts: NDArray[np.int64], word_bits: int, shift: int, bits: int) -> NDArray[np.int64]:
    """Counts of the values of some bits of a word: int64 `[2**bits]`."""
    summed: NDArray[np.int64] = counts.reshape(1 << word_bits - shift - bits, 1 << bits, 1 << shift).sum(axis=(0, 2))
    return summed


def _field(name: str, first: int, bits: int, counts: NDArray[np.int64], n: int) -> Field:
    used = int(np.count_nonzero(counts))
    bias = (used - 1) / (2 * n * _LOG_2) if n else 0.0
    return Field(name, first, bits, shannon_entropy(counts), bias)
