"""A loop whose cycles are known: what seconds mean in cycles of the CPU at this moment."""

from __future__ import annotations

import numpy as np

from .jit import kernel

CYCLES = 4  # per step of `chain`


@kernel
def chain(steps: int, x: np.uint64, a: np.uint64, b: np.uint64) -> np.uint64:
    """`steps` steps of four operations, each of which waits for the one before and takes one cycle on any CPU.

    Exclusive or and addition by turns cannot be merged; their operands are arguments because some CPUs add constants
    for free.
    """
    for _ in range(steps):
        x = (((x ^ a) + b) ^ b) + a
    return x
