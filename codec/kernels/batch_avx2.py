"""The vector twins of the ANS loops in `batch`."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from . import ans16_decode_avx2, ans256_avx2, escape16_avx2, split8_avx2
from .ans_header import I
from .batch import bytes_at, damaged, words_at
from .check_avx2 import check
from .jit import kernel
from .status import OK, WRONG_CHECKSUM


@kernel
def decode_ans16(tasks: NDArray[Any], status: NDArray[np.int64]) -> None:
    for i in range(tasks.size):
        t = tasks[i]
        if damaged(t):
            status[i] = WRONG_CHECKSUM
            continue
        out, table = bytes_at(t.out, t.size), numba.carray(words_at(t.table), (16,))
        payload = bytes_at(t.payload, t.nbytes)
        status[i] = ans16_decode_avx2.decode_ans16(payload, I(t.streams), table, out, t.ahead, t.ranges)
        if status[i] == OK:
            status[i] = check(out, t.unused, t.spare)


@kernel
def decode_ans256(tasks: NDArray[Any], status: NDArray[np.int64]) -> None:
    for i in range(tasks.size):
        t = tasks[i]
        if damaged(t):
            status[i] = WRONG_CHECKSUM
            continue
        out, table = bytes_at(t.out, t.size), numba.carray(words_at(t.table), (256,))
        status[i] = ans256_avx2.decode_ans256(bytes_at(t.payload, t.nbytes), I(t.streams), table, out)
        if status[i] == OK:
            status[i] = check(out, t.unused, t.spare)


@kernel
def decode_split8(tasks: NDArray[Any], status: NDArray[np.int64]) -> None:
    for i in range(tasks.size):
        t = tasks[i]
        if damaged(t):
            status[i] = WRONG_CHECKSUM
            continue
        out, table = bytes_at(t.out, t.size), numba.carray(words_at(t.table), (16,))
        status[i] = split8_avx2.decode_split8(bytes_at(t.payload, t.nbytes), I(t.streams), table, out)
        if status[i] == OK:
            status[i] = check(out, t.unused, t.spare)


@kernel
def decode_escape16(tasks: NDArray[Any], status: NDArray[np.int64]) -> None:
    for i in range(tasks.size):
        t = tasks[i]
        if damaged(t):
            status[i] = WRONG_CHECKSUM
            continue
        out, table = bytes_at(t.out, t.size), numba.carray(words_at(t.table), (32,))
        status[i] = escape16_avx2.decode_escape16(bytes_at(t.payload, t.nbytes), I(t.streams), table, out)
        if status[i] == OK:
            status[i] = check(out, t.unused, t.spare)
