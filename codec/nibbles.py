"""A run that is coded by nibbles: all its chunks in a few compiled calls, whose time is that of the bare kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .ans import ANS16, ANS256, encoded_bound
from .model import PRECISION, UNITS, cost_units, log_steps, log_units
from .run_map import RunMap
from .scratch import scratch

WORTH_BYTES = 0.002  # share of the size that coding nibbles by pairs must save: vector kernels are slower at it
_DOUBTFUL = WORTH_BYTES / 2  # share that they must promise in a sample, before everything is counted
# In units: a table of nibbles, a table of bytes, and a value of a byte in a sample. The counts of a sample vary by chance,
# which makes them look as if a table of bytes would save half a nat for each value.
_PRICES = np.array([8 * ANS16.table_nbytes * UNITS, 8 * ANS256.table_nbytes * UNITS, round(0.7213 * UNITS)], np.int64)
_PIECE_NBYTES = 1 << 18  # of packed codes, for a thread

Piece = tuple[int, int]


def nibble_tables(
    packed: NDArray[np.uint8], bounds: NDArray[np.int64], run: RunMap, pairs: bool = True
) -> NDArray[np.uint16] | None:
    """Frequencies that code each chunk of a run by nibbles: its own, or those that several share, what is cheaper.

    packed: read-only; chunk i is its bytes `bounds[i] .. bounds[i + 1] - 1`, at least one. Returns uint16 `[chunks, 16]`,
    zeros for a chunk whose bytes are all the same; or None if pairs of nibbles, coded as bytes, might save more than
    WORTH_BYTES of the size, and `pairs` says that they may be coded so.
    """
    chunks, kernels = bounds.size - 1, _kernels()
    counts, samples = np.zeros((chunks, 16), np.int64), np.zeros((chunks, 256), np.int64)
    varied, fitted = np.zeros(chunks, np.uint8), np.zeros((chunks + 1, 16), np.int64)

    def survey(piece: Piece) -> None:
        a, b = piece
        kernels.survey(packed, bounds[a : b + 1], counts[a:b], samples[a:b], varied[a:b])

    for _ in run(survey, pieces_of(bounds, run)):
        pass
    by_nibbles, by_bytes = kernels.fit(bounds, counts, samples, varied, *_costs(), fitted)
    frequencies = fitted[:-1].astype(np.uint16)
    frequencies.flags.writeable = False  # as those of a FrequencyTable: a kernel is compiled for each kind of array
    return None if pairs and by_bytes < by_nibbles * (1 - _DOUBTFUL) else frequencies


class ChunkEncoder(NamedTuple):
    """A kernel that codes several chunks, and the memory it takes by the size of the largest chunk and its streams."""

    encode: Callable[..., None]
    memory_bound: Callable[[int, int], int]


def nibble_encoder() -> ChunkEncoder:
    """What codes the chunks of a run with frequencies of `nibble_tables`."""
    return ChunkEncoder(_kernels().encode, encoded_bound)


def encode_chunks(
    encoder: ChunkEncoder,
    packed: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    codes: Sequence[int],
    tables: NDArray[np.uint16],
    room: NDArray[np.uint8],
    finish: Callable[[int, list[int], list[int], list[int]], list[Any]],
    run: RunMap,
) -> list[Any]:
    """Code the chunks of a run with a row of tables for each. Returns what `finish` made of each.

    codes: number of codes in each chunk. room: uint8, as large as `packed`, for payloads, each at the end of where its chunk
    is in `packed`. finish(first, streams, nbytes, checksums) is called in the thread that coded these chunks, from `first` on;
    nbytes, of a payload, is 0 if that would not be smaller than the chunk or its row is 0, and -1 if the chunk holds a symbol of
    frequency 0.
    """
    streams, places, xxh3 = [ANS16.default_streams(n) for n in codes], bounds.tolist(), _xxh3_address()
    bound = encoder.memory_bound(max([b - a for a, b in pairwise(places)]), max(streams))

    def encode(piece: Piece) -> list[Any]:
        a, b = piece
        mine, nbytes, checksums = streams[a:b], np.empty(b - a, np.int64), np.empty(b - a, np.uint64)
        arrays = np.array(mine, np.int64), tables[a:b], scratch(bound), room, nbytes, checksums
        encoder.encode(packed, bounds[a : b + 1], *arrays, xxh3)
        return finish(a, mine, nbytes.tolist(), checksums.tolist())

    pieces = pieces_of(bounds, run)
    if len(pieces) == 1:
        return encode(pieces[0])
    return [result for results in run(encode, pieces) for result in results]


def pieces_of(bounds: NDArray[np.int64], run: RunMap) -> list[Piece]:
    """What is done in one call: chunks (first, behind the last), of about _PIECE_NBYTES if there may be several threads."""
    if run is map or len(bounds) == 2:
        return [(0, len(bounds) - 1)]
    pieces, first = [], 0
    starts = bounds.tolist()
    for i, end in enumerate(starts[1:], 1):
        if end - starts[first] >= _PIECE_NBYTES or i == len(starts) - 1:
            pieces.append((first, i))
            first = i
    return pieces


@cache
def _xxh3_address() -> int:
    from .kernels.xxh3 import xxh3_address

    return xxh3_address()


class _Kernels(NamedTuple):
    survey: Callable[..., None]
    fit: Callable[..., tuple[float, float]]
    encode: Callable[..., None]


@cache
def _kernels() -> _Kernels:
    from .kernels.fit_nibbles import fit_nibbles
    from .kernels.select import nibble_run

    return _Kernels(nibble_run().survey, fit_nibbles, nibble_run().encode)


@cache
def _costs() -> tuple[NDArray[Any], ...]:
    return log_steps(PRECISION[16]), cost_units(PRECISION[16]), log_units(), _PRICES
