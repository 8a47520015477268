"""Which coder and which tables suit the chunks of a run, from the counts of their bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .ans import ANS16, ANS256
from .coder import Coder, Table
from .escape16 import ESCAPE16
from .escape_run import escape_tables
from .escape_table import EscapeTable
from .nibbles import WORTH_BYTES
from .run_map import RunMap
from .split8 import RAW_BITS, SPLIT8
from .split8 import SHIFT as SPLIT_SHIFT

ESCAPES_BITS = 32  # the number of escapes in a chunk of escape16
_RAW = np.array([0] * 31 + [1], np.uint16)
MARGIN = 1e-5  # share of a bound: far more than logarithms of floats and costs in integers are off by


def choose_tables(
    coder: Coder, counts: list[NDArray[np.int64]], run: RunMap, extra: float
) -> tuple[Coder, list[Table | None]]:
    """The coder and the table for each chunk, from the counts of its bytes. None for chunks that are constant."""
    coded = [i for i, c in enumerate(counts) if np.count_nonzero(c) > 1]
    tables: list[Table | None] = [None] * len(counts)
    if not coded:
        return coder, tables
    some = [counts[i] for i in coded]
    cost, chosen = _own_or_shared(coder, some, run)
    if coder is ANS16:
        # Where one nibble is much more likely than all others, 8 bits of probability waste some percent.
        finer_cost, finer = _own_or_shared(ANS256, some, run)
        if finer_cost < cost * (1 - WORTH_BYTES):
            coder, chosen = ANS256, finer
    elif coder is ANS256:
        # 12 bits of probability are so fine that what they cost is the entropy.
        entropy = sum(ANS256.fit(c).cost_bits(c) for c in some)
        split_cost, split = _own_or_shared(SPLIT8, some, run)
        split_cost += RAW_BITS * sum(int(c.sum()) for c in some)
        likely_cost, rows = escape_tables(np.array(some))
        likely_cost += ESCAPES_BITS * len(some)
        rows.flags.writeable = False  # as those of other tables: a kernel is compiled for each kind of array
        likely: list[Table] = [EscapeTable(row) for row in rows]
        if min(likely_cost, split_cost) <= max(cost, entropy * (1 + extra)):
            coder, chosen = (ESCAPE16, likely) if likely_cost < split_cost else (SPLIT8, split)
    for i, table in zip(coded, chosen, strict=True):
        tables[i] = table
    return coder, tables


def _own_or_shared(coder: Coder, counts: list[NDArray[np.int64]], run: RunMap) -> tuple[float, list[Table]]:
    """A table for each chunk, its own or one that several share, whichever is cheaper; and the bits for all."""
    price = 8 * coder.table_nbytes
    symbols = [coder.symbol_counts(c) for c in counts]
    own = list(run(coder.fit, counts))
    own_costs = [table.cost_bits(c) + price for table, c in zip(own, symbols, strict=True)]
    if len(own) == 1:
        return own_costs[0], own
    shared = coder.fit(np.sum(counts, axis=0))
    assert shared is not None  # only coders with tables come here
    shared_costs = [shared.cost_bits(c) for c in symbols]
    cost = sum(map(min, own_costs, shared_costs)) + price
    if sum(own_costs) <= cost:
        return sum(own_costs), own
    return cost, [a if x < y else shared for a, x, y in zip(own, own_costs, shared_costs, strict=True)]


def likely_rows(counts: NDArray[np.int64], extra: float) -> NDArray[np.uint16] | None:
    """Tables of escape16 for a run of bytes if it is clear, without fitting others, that `choose_tables` would take it.

    Rows of chunks that would not shrink have no frequencies, those of chunks whose bytes are all the same nothing but zeros.
    """
    from .kernels.entropies import entropies

    coded = np.count_nonzero(counts, axis=1) > 1
    some = counts if coded.all() else counts[coded]
    if not len(some):
        return None
    cost, rows = escape_tables(some)
    cost = (cost + ESCAPES_BITS * len(some)) * (1 + MARGIN)
    # No table comes below the entropy.
    hopeless = np.empty(len(some), np.uint8)
    whole, halves, total = entropies(some, SPLIT_SHIFT, hopeless)
    if cost > whole * (1 + extra) or cost > halves + RAW_BITS * total + 8 * SPLIT8.table_nbytes:
        return None
    if hopeless.any():
        rows[hopeless > 0] = _RAW
    if len(some) == len(counts):
        return rows
    found = np.zeros((len(counts), rows.shape[1]), np.uint16)
    found[coded] = rows
    return found
