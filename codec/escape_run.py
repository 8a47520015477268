"""A run of bytes in a few compiled calls: how often each byte occurs in its chunks, tables of coder 6, and coding with these."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from .ans import encoded_bound
from .escape16 import HEADER
from .escape_table import NBYTES, PRECISION
from .model import UNITS, cost_units, log_steps
from .nibbles import ChunkEncoder, Piece, pieces_of
from .run_map import RunMap
from .scratch import scratch


def run_counts(packed: NDArray[np.uint8], bounds: NDArray[np.int64], run: RunMap) -> NDArray[np.int64]:
    """Number of each byte value in the chunks of a run: int64 `[chunks, 256]`. Where few occur they are counted in registers.

    packed: read-only; chunk i is its bytes `bounds[i] .. bounds[i + 1] - 1`, at least one.
    """
    return _counts(packed, bounds, run, np.zeros(bounds.size - 1, np.uint8))


def about_counts(packed: NDArray[np.uint8], bounds: NDArray[np.int64], run: RunMap) -> tuple[NDArray[np.int64], bool]:
    """The same, and whether that is all; large chunks may be estimated from a sample.

    Good enough for `escape_tables`: such counts cost it some 0.01 %. A table of another coder may lack a byte.
    """
    estimated = np.ones(bounds.size - 1, np.uint8)
    return _counts(packed, bounds, run, estimated), not np.count_nonzero(estimated)


def _counts(
    packed: NDArray[np.uint8], bounds: NDArray[np.int64], run: RunMap, estimated: NDArray[np.uint8]
) -> NDArray[np.int64]:
    counts = np.zeros((bounds.size - 1, 256), np.int64)
    largest = max(b - a for a, b in pairwise(bounds.tolist()))

    def count(piece: Piece) -> None:
        a, b = piece
        _kernels().count(packed, bounds[a : b + 1], counts[a:b], scratch(2 * largest), estimated[a:b])

    for _ in run(count, pieces_of(bounds, run)):
        pass
    return counts


def escape_tables(counts: NDArray[np.int64]) -> tuple[float, NDArray[np.uint16]]:
    """Bits that coder 6 takes for a run, tables included, and the rows of the tables: uint16 `[chunks, 32]`.

    counts: of the bytes in each chunk, int64 `[chunks, 256]`, at least one. Each chunk has its own table, or one that several
    share, whichever makes the sum smaller.
    """
    from .kernels.escape_run import fit_escapes

    rows = np.zeros((len(counts), NBYTES), np.uint16)
    price = 8 * NBYTES * UNITS
    return fit_escapes(counts, log_steps(PRECISION), cost_units(PRECISION), price, rows) / UNITS, rows


def escape_encoder() -> ChunkEncoder:
    """What codes the chunks of a run with rows of `escape_tables`."""
    return ChunkEncoder(_kernels().encode, memory_bound)


def memory_bound(nbytes: int, streams: int) -> int:
    """Size of the memory that coding a chunk takes."""
    half = -(-nbytes // 2)
    return nbytes + half + HEADER + encoded_bound(half, streams)


@cache
def _kernels() -> ModuleType:
    from .kernels.select import escape_run

    return escape_run()
