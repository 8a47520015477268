"""The state machines of dependent quantization: which state follows which.

They are Ungerboeck's codes for amplitude modulation, given by parity-check polynomials (IEEE Trans. IT 28, 1982);
Marcellin and Fischer use them for source coding (IEEE Trans. Comm. 38, 1990).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidArgumentError

POLYNOMIALS = {  # states -> (h1, h0)
    4: (0o2, 0o5), 8: (0o4, 0o13), 16: (0o4, 0o23), 32: (0o10, 0o45),
    64: (0o24, 0o103), 128: (0o126, 0o235), 256: (0o362, 0o515),
}  # fmt: skip


@cache
def next_states(states: int) -> NDArray[np.uint8]:
    """State after an even and after an odd code: uint8 `[states, 2]`, read-only.

    With h1, h0 as above and s the bits of the state, p the parity: bit i - 1 of the next state is
    s[i] ^ (h0[i] & s[0]) ^ (h1[i] & p) for i = 1 .. log2(states), where s[log2(states)] = 0.

    Raises InvalidArgumentError for a number of states that has no code.

    >>> next_states(4).tolist()
    [[0, 1], [2, 3], [1, 0], [3, 2]]
    """
    if states not in POLYNOMIALS:
        raise InvalidArgumentError(f"no trellis has {states} states; choose {', '.join(map(str, POLYNOMIALS))}")
    h1, h0 = POLYNOMIALS[states]
    state = np.arange(states)[:, None]
    table: NDArray[np.uint8] = ((state ^ h0 * (state & 1) ^ h1 * np.arange(2)) >> 1).astype(np.uint8)
    table.flags.writeable = False
    return table


def predecessors(states: int) -> tuple[NDArray[np.int64], int]:
    """(before, flip): an even code leads to state t from before[t], an odd code from before[t] ^ flip.

    Both have the same lowest bit, which is the highest bit of t: the search relies on it.
    """
    table = next_states(states)
    before = np.empty(states, np.int64)
    before[table[:, 0]] = np.arange(states)
    return before, POLYNOMIALS[states][0]
