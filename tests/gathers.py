"""Random ways to gather the codes of a record from all over it."""

from __future__ import annotations

import math

import numpy as np

Walk = list[list[int]]


def random_walks(rng: np.random.Generator, size: int) -> list[Walk]:
    """For a record of `size` bytes: the counts of each field, then its parts; at most 64 fields.

    Regions of the record hold units of 1 or more parts, in an order of digits of their own, as the low and the high bits of codes do.
    """
    fields: list[list[tuple[int, int]]] = []  # (bits, number of its place)
    counts_of: list[list[int]] = []
    regions: list[tuple[list[int], list[tuple[int, int]]]] = []  # counts, and parts as above
    left, places = 8 * size, 0
    while left:
        counts = [int(n) for n in rng.choice([1, 2, 3, 4, 8, 16, 32], rng.integers(0, 5))]
        if math.prod(counts) > left or rng.random() < 0.1:
            counts = []
        if len(fields) >= 40:
            counts = [left]
        parts: list[tuple[int, int]] = []
        for _ in range(rng.integers(1, 5)):
            bits = int(rng.choice([1, 2, 3, 4, 5, 8]))
            if (sum(b for b, _ in parts) + bits) * math.prod(counts) <= left and len(fields) < 40:
                parts.append((bits, places))
                places += 1
        if not parts:
            parts, places = [(1, places)], places + 1
        left -= sum(bits for bits, _ in parts) * math.prod(counts)
        apart = rng.random() < 0.7
        regions += [(counts, [part]) for part in parts] if apart else [(counts, parts)]
        for part in (parts[i] for i in rng.permutation(len(parts))):
            if not fields or counts_of[-1] is not counts or sum(bits for bits, _ in fields[-1]) + part[0] > 8:
                fields.append([])
                counts_of.append(counts)
            fields[-1].append(part)
    found: dict[int, list[int]] = {}
    at = 0
    for counts, parts in (regions[i] for i in rng.permutation(len(regions))):
        unit = sum(bits for bits, _ in parts)
        strides, step = [0] * len(counts), unit
        for digit in rng.permutation(len(counts)) if rng.random() < 0.5 else reversed(range(len(counts))):
            strides[digit], step = step, step * counts[digit]
        offset = at
        for bits, place in parts:
            found[place] = [bits, offset, *strides]
            offset += bits
        at += step
    walks = [[counts, *(found[place] for _, place in parts)] for counts, parts in zip(counts_of, fields, strict=True)]
    return [walks[i] for i in rng.permutation(len(walks))]


def fields_of(walks: list[Walk]) -> list[tuple[int, int]]:
    """Bits and count of each."""
    return [(sum(part[0] for part in parts), math.prod(counts)) for counts, *parts in walks]
