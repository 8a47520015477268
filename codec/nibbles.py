"""Tables for a run that is coded by nibbles, found without counting all its bytes: that would take as long as coding them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .ans import ANS16, ANS256
from .model import PRECISION, UNITS, FrequencyTable, cost_units, log_steps, log_units
from .run_map import RunMap

WORTH_BYTES = 0.002  # share of the size that coding nibbles by pairs must save: vector kernels are slower at it
_DOUBTFUL = WORTH_BYTES / 2  # share that they must promise in a sample, before everything is counted
# A sample: 8 KB in 16 pieces, of chunks that are at least twice as large. Chance moves what pairs seem to save by 0.03 %.
_PIECES, _PIECE = 16, 512
# In units: a table of nibbles, a table of bytes, and a value of a byte in a sample. The counts of a sample vary by chance,
# which makes them look as if a table of bytes would save half a nat for each value.
_PRICES = np.array([8 * ANS16.table_nbytes * UNITS, 8 * ANS256.table_nbytes * UNITS, round(0.7213 * UNITS)], np.int64)


def nibble_tables(buffers: Sequence[NDArray[np.uint8]], run: RunMap) -> list[FrequencyTable | None] | None:
    """The tables that code each chunk of a run by nibbles (ans16): its own or one that several share, what is cheaper.

    buffers: packed chunks, read-only, none empty. A chunk whose bytes are all the same gets None for a table. The result is
    None if pairs of nibbles, coded as bytes, might save more than WORTH_BYTES of the size.
    """
    counts, samples = np.zeros((len(buffers), 16), np.int64), np.zeros((len(buffers), 256), np.int64)
    coded = [i for i, varied in enumerate(run(_Count(buffers, counts, samples), range(len(buffers)))) if varied]
    tables: list[FrequencyTable | None] = [None] * len(buffers)
    if not coded:
        return tables
    sizes = np.array([buffers[i].size for i in coded], np.int64)
    if len(coded) < len(buffers):
        counts, samples = counts[coded], samples[coded]
    frequencies = np.zeros((len(coded) + 1, 16), np.int64)
    steps, units, fit = log_steps(PRECISION[16]), cost_units(PRECISION[16]), _kernels()[2]
    by_nibbles, by_bytes = fit(counts, samples, sizes, steps, units, log_units(), _PRICES, frequencies)
    if by_bytes < by_nibbles * (1 - _DOUBTFUL):
        return None
    rows = frequencies.astype(np.uint16)
    rows.flags.writeable = False
    for i, row in zip(coded, rows, strict=False):
        tables[i] = FrequencyTable.trusted(row, PRECISION[16])
    return tables


class _Count:
    """Counts all nibbles of a chunk, and some of its bytes. Returns whether not all bytes are the same."""

    def __init__(
        self, buffers: Sequence[NDArray[np.uint8]], nibbles: NDArray[np.int64], samples: NDArray[np.int64]
    ) -> None:
        self._buffers, self._nibbles, self._samples = buffers, nibbles, samples
        self._count_nibbles, self._sample_bytes, _ = _kernels()

    def __call__(self, i: int) -> bool:
        buffer, sample = self._buffers[i], self._samples[i]
        self._count_nibbles(buffer, self._nibbles[i])
        if buffer.size < 2 * _PIECES * _PIECE:
            self._sample_bytes(buffer, 1, buffer.size, sample)
        else:
            self._sample_bytes(buffer, _PIECES, _PIECE, sample)
        return bool(np.count_nonzero(sample) > 1 or (buffer != buffer[0]).any())


@cache
def _kernels() -> tuple[Callable[..., None], Callable[..., None], Callable[..., tuple[float, float]]]:
    """Found once: an import in a function costs a microsecond, and a chunk takes a hundred."""
    from .kernels.bits import sample_bytes
    from .kernels.fit_nibbles import fit_nibbles
    from .kernels.select import count_nibbles

    return count_nibbles(), sample_bytes, fit_nibbles
