"""Canonical Huffman codes of at most 11 bits over bytes, as a table of code lengths."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from .errors import CorruptionError, InvalidArgumentError

LIMIT = 11  # bits of the longest code


@dataclass(frozen=True, eq=False)
class CodeLengths:
    """Code lengths of the 256 bytes; a byte of length 0 cannot be coded.

    lengths: uint8 `[256]`, each 0..11, read-only. Either the code is complete (the sum of 2**-length is 1), or it
    has one byte, of length 1. Raises InvalidArgumentError for others.
    """

    lengths: NDArray[np.uint8]

    def __post_init__(self) -> None:
        lengths = np.array(self.lengths, np.uint8)
        problem = _problem(lengths)
        if problem:
            raise InvalidArgumentError(problem)
        lengths.flags.writeable = False
        object.__setattr__(self, "lengths", lengths)

    @classmethod
    def from_counts(cls, counts: NDArray[np.int64], limit: int = LIMIT) -> CodeLengths:
        """The code of at most `limit` bits (8..11) that codes these counts (int64 `[256]`) in the fewest bits.

        Package-merge (Larmore and Hirschberg, 1990). Raises InvalidArgumentError if nothing is counted.
        """
        used = np.flatnonzero(counts)
        if used.size == 0 or counts.min() < 0 or not 8 <= limit <= LIMIT:
            raise InvalidArgumentError(f"a Huffman code needs counts and a limit of 8 to {LIMIT} bits, got {limit}")
        lengths = np.zeros(256, np.uint8)
        if used.size == 1:
            lengths[used] = 1
            return cls(lengths)
        symbols = used[np.argsort(counts[used], kind="stable")]  # rarest first
        leaves = counts[symbols].astype(np.int64)
        level, levels = leaves, [np.ones(leaves.size, np.bool_)]  # each level's weights; which of them are leaves
        for _ in range(limit - 1):
            packages = level[0 : level.size // 2 * 2 : 2] + level[1::2]
            merged = np.concatenate([leaves, packages])
            order = np.argsort(merged, kind="stable")
            level = merged[order]
            levels.append(order < leaves.size)
        taken = 2 * leaves.size - 2
        for is_leaf in reversed(levels):
            n = int(np.count_nonzero(is_leaf[:taken]))
            lengths[symbols[:n]] += 1
            taken = 2 * (taken - n)
        return cls(lengths)

    @cached_property
    def codes(self) -> NDArray[np.uint32]:
        """uint32 `[256]`: code << 8 | length, the code's bits reversed: first bit lowest, as streams are filled."""
        symbols, lengths = self._canonical()
        spans = 1 << (LIMIT - lengths)  # how much of the code space each symbol takes, in codes of 11 bits
        codes = np.zeros(256, np.uint32)
        codes[symbols] = _reversed_windows()[np.cumsum(spans) - spans].astype(np.uint32) << 8 | lengths
        codes.flags.writeable = False
        return codes

    @cached_property
    def windows(self) -> NDArray[np.uint16]:
        """uint16 `[2**11]`: symbol << 8 | length by the next 11 bits of a stream; 0 where no code begins."""
        symbols, lengths = self._canonical()
        windows = np.zeros(1 << LIMIT, np.uint16)
        filled = np.repeat(symbols << 8 | lengths, 1 << (LIMIT - lengths))
        windows[: filled.size] = filled
        windows = windows[_reversed_windows()]
        windows.flags.writeable = False
        return windows

    def _canonical(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Coded symbols by length, then value; and their lengths."""
        symbols = np.argsort(self.lengths, kind="stable")[np.count_nonzero(self.lengths == 0) :]
        return symbols, self.lengths[symbols].astype(np.int64)

    def cost_bits(self, counts: NDArray[np.int64]) -> float:
        """Bits that these counts take with this code; inf if it cannot code a counted byte."""
        if counts[self.lengths == 0].any():
            return float("inf")
        return float((counts * self.lengths).sum())

    def to_bytes(self) -> bytes:
        """The row of a table bank: 128 bytes, two lengths in each, low nibble first."""
        return (self.lengths[0::2] | self.lengths[1::2] << 4).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> CodeLengths:
        """Read a row of the Huffman table bank. Raises CorruptionError for any but a valid table."""
        row = np.frombuffer(data, np.uint8)
        if row.size != 128:
            raise CorruptionError(f"a Huffman table has 128 bytes, got {row.size}")
        lengths = np.stack([row & 15, row >> 4], axis=1).reshape(-1)
        problem = _problem(lengths)
        if problem:
            raise CorruptionError(problem)
        return cls(lengths)


@cache
def _reversed_windows() -> NDArray[np.uint16]:
    """0 .. 2**11 - 1 with the order of their 11 bits reversed."""
    windows = np.arange(1 << LIMIT, dtype=np.uint16)
    turned = np.zeros_like(windows)
    for i in range(LIMIT):
        turned |= (windows >> i & 1) << (LIMIT - 1 - i)
    return turned


def _problem(lengths: NDArray[np.uint8]) -> str | None:
    if lengths.shape != (256,):
        return f"a Huffman table has 256 code lengths, got shape {lengths.shape}"
    if lengths.max() > LIMIT:
        return f"a Huffman table has a code of {lengths.max()} bits; at most {LIMIT} are allowed"
    used = lengths[lengths > 0].astype(np.int64)
    kraft = int((1 << (LIMIT - used)).sum())
    if kraft != 1 << LIMIT and not (used.size == 1 and used[0] == 1):
        return f"the code lengths of a Huffman table fill {kraft / (1 << LIMIT):.4f} of the code space, not all of it"
    return None
