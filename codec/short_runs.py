"""When a short run, of one chunk, is worth a coder with few states and exact probabilities, which decodes more slowly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .histogram import fold_counts
from .model import FrequencyTable, entropy_bits
from .short16 import SHORT16, lanes_for
from .short256 import fit_within, written

STRICT = 0.002
"""Share of the entropy of its codes by which the payload of a short run may be above it, without its table."""
STRICT_NBYTES = 1 << 12
"""For runs of fewer bytes, such as zero points, just the sum with the table counts: an exact table costs more than it saves."""

LANE_NBYTES, ENDS_NBYTES = 3.5, 2  # what lanes but the first take beyond information, and the first one and whole bytes


def better_table(
    coder: int, payload_nbytes: int, nbytes: int, counts: NDArray[np.int64], width: int, extra: float
) -> tuple[FrequencyTable, int] | None:
    """The table and number of streams with which SHORT16 or SHORT256 (`coder`, its id) beats what another one has made.

    It does where the other one's payload, of `payload_nbytes`, is above the entropy by more than STRICT, unless `extra` is more, or
    where it saves more than a share of `extra` of all `nbytes`, tables included. counts: of the nibbles or bytes, not all 0; codes have
    `width` bits.
    """
    entropy = entropy_bits(fold_counts(counts, width)) / 8
    strict = extra <= STRICT and counts.sum() >= STRICT_NBYTES
    allowed = entropy * (1 + STRICT) if strict else np.inf
    streams = lanes_for(8 * entropy)
    ends = ENDS_NBYTES + LANE_NBYTES * (streams - 1)
    if coder == SHORT16.id:
        table, table_nbytes = SHORT16.fit(counts), SHORT16.table_nbytes
    else:
        table = fit_within(counts, 8 * (allowed - ends))
        table_nbytes = written(table).size
    payload = table.cost_bits(counts) / 8 + ends
    saves = payload + table_nbytes < nbytes * (1 - extra)
    return (table, streams) if saves or payload_nbytes > max(allowed, payload) else None
