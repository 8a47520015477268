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
    cost, chosen, entropy = _own_or_shared(coder, some, run)
    if coder is ANS16:
        # Where one nibble is much more likely than all others, 8 bits of probability waste some percent.
        finer_cost, finer, _ = _own_or_shared(ANS256, some, run)
        if finer_cost < cost * (1 - WORTH_BYTES):
            coder, chosen = ANS256, finer
    elif coder is ANS256:
        # 12 bits of probability are so fine that what they cost is the entropy.
        allowed, together = max(cost, entropy * (1 + extra)), np.array(some)
        likely_cost, rows = escape_tables(together)
        likely_cost += ESCAPES_BITS * len(some)
        split_cost, split = _split(together, some, min(allowed, likely_cost), run)
        if min(likely_cost, split_cost) <= allowed:
            rows.flags.writeable = False  # as those of other tables: a kernel is compiled for each kind of array
            likely: list[Table] = [EscapeTable(row) for row in rows]
            coder, chosen = (ESCAPE16, likely) if likely_cost < split_cost else (SPLIT8, split)
    for i, table in zip(coded, chosen, strict=True):
        tables[i] = table
    return coder, tables


def _split(
    together: NDArray[np.int64], counts: list[NDArray[np.int64]], allowed: float, run: RunMap
) -> tuple[float, list[Table]]:
    """Bits that split8 takes, and its tables; none are fitted where it is clear that these are more than `allowed`."""
    from .kernels.entropies import entropies

    _, halves, total = entropies(together, SPLIT_SHIFT, np.empty(len(together), np.uint8))
    if (halves + RAW_BITS * total) * (1 - MARGIN) > allowed:
        return float("inf"), []
    cost, tables, _ = _own_or_shared(SPLIT8, counts, run)
    return cost + RAW_BITS * total, tables


def _own_or_shared(coder: Coder, counts: list[NDArray[np.int64]], run: RunMap) -> tuple[float, list[Table], float]:
    """A table for each chunk, its own or one that several share, whichever is cheaper; the bits for all in front; behind, those of
    the codes alone with tables of their own.
    """
    price = 8 * coder.table_nbytes
    symbols = [coder.symbol_counts(c) for c in counts]
    own = list(run(coder.fit, counts))
    bits = [table.cost_bits(c) for table, c in zip(own, symbols, strict=True)]
    own_costs = [cost + price for cost in bits]
    if len(own) == 1:
        return own_costs[0], own, bits[0]
    shared = coder.fit(np.sum(counts, axis=0))
    assert shared is not None  # only coders with tables come here
    shared_costs = [shared.cost_bits(c) for c in symbols]
    cost = sum(map(min, own_costs, shared_costs)) + price
    if sum(own_costs) <= cost:
        return sum(own_costs), own, sum(bits)
    tables = [a if x < y else shared for a, x, y in zip(own, own_costs, shared_costs, strict=True)]
    return cost, tables, sum(bits)


def likely_rows(counts: NDArray[np.int64], extra: float) -> NDArray[np.uint16] | None:
    """Tables of escape16 for a run of bytes if it is clear, without fitting others, that `choose_tables` would take it: as far
    as `counts` tell, for they may be those of a sample.

    Rows of chunks that would not shrink have no frequencies, those of chunks whose bytes are all the same nothing but zeros.
    """
    from .kernels.entropies import CONSTANT, HOPELESS, entropies

    # No table comes below the entropy.
    kinds = np.empty(len(counts), np.uint8)
    whole, halves, total = entropies(counts, SPLIT_SHIFT, kinds)
    found = kinds.tobytes()
    coded = kinds != CONSTANT if CONSTANT in found else None
    if coded is not None:
        counts, kinds = counts[coded], kinds[coded]
    if not len(counts):
        return None
    cost, rows = escape_tables(counts)
    cost = (cost + ESCAPES_BITS * len(counts)) * (1 + MARGIN)
    if cost > whole * (1 + extra) or cost > halves + RAW_BITS * total + 8 * SPLIT8.table_nbytes:
        return None
    if HOPELESS in found:
        rows[kinds == HOPELESS] = _RAW
    if coded is None:
        return rows
    all_rows = np.zeros((len(coded), rows.shape[1]), np.uint16)
    all_rows[coded] = rows
    return all_rows
