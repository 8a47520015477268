"""The checksum of the kernels against the package `xxhash`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qzc.codec.kernels.xxh3 import xxh3_address


@pytest.fixture(scope="module")
def hash_at() -> Callable[[int, int], int]:
    return ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64)(xxh3_address())


@pytest.fixture(scope="module")
def data() -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, 1 << 20, dtype=np.uint8)


def test_all_short_lengths_and_some_long_ones(hash_at: Callable[[int, int], int], data: NDArray[np.uint8]) -> None:
    lengths = [*range(1101), *(1024 * k + d for k in (2, 3, 16, 100) for d in range(-65, 67, 3)), data.size - 7]
    for n in lengths:
        assert hash_at(data.ctypes.data + 7, n) == xxhash.xxh3_64_intdigest(data[7 : 7 + n].data), n


@given(st.integers(0, 70), st.integers(0, 300_000), st.integers(0, 255))
def test_anywhere_in_memory(
    hash_at: Callable[[int, int], int], data: NDArray[np.uint8], start: int, nbytes: int, fill: int
) -> None:
    for buffer in (data, np.full(300_100, fill, np.uint8)):
        view = buffer[start : start + nbytes]
        assert hash_at(buffer.ctypes.data + start, nbytes) == xxhash.xxh3_64_intdigest(view.data)
