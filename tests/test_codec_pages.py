"""Memory that arrays share: what is handed out never overlaps, and one small tensor keeps no piece alive."""

from itertools import pairwise

import numpy as np

from qzc.codec.pages import ALIGNMENT, FEW_NBYTES, LARGE_NBYTES, PAGE_NBYTES, PIECE_NBYTES, empty, shared_pages


def place(array: np.ndarray) -> tuple[int, int]:
    return array.ctypes.data, array.ctypes.data + array.nbytes


def test_arrays_do_not_overlap_and_begin_at_multiples() -> None:
    rng = np.random.default_rng(0)
    sizes = [0, 1, FEW_NBYTES, *rng.integers(1, 1 << 21, 40).tolist(), LARGE_NBYTES, LARGE_NBYTES - 1, 1]
    with shared_pages():
        arrays = [empty(size) for size in sizes]
    assert [array.size for array in arrays] == sizes and all(array.dtype == np.uint8 for array in arrays)
    places = sorted(map(place, (array for array in arrays if array.size)))
    assert all(end <= begin for (_, end), (begin, _) in pairwise(places))
    shared = [array for array in arrays if array.base is not None and array.size < LARGE_NBYTES]
    assert 35 < len(shared) < len(arrays) and not any(array.ctypes.data % ALIGNMENT for array in shared)
    pieces = {id(array.base) for array in shared}
    assert len(pieces) * PIECE_NBYTES < 2 * sum(array.size for array in shared) + PIECE_NBYTES


def test_a_few_small_arrays_are_their_own() -> None:
    with shared_pages():
        assert empty(1000).base is None
        assert empty(1000).base is None
    with shared_pages():
        assert empty(FEW_NBYTES + 1).base is None  # the only one
    assert empty(1 << 21).base is None  # outside


def test_large_arrays_begin_where_a_large_page_does() -> None:
    for size in (LARGE_NBYTES, LARGE_NBYTES + 5, 2 * PIECE_NBYTES - 1):
        array = empty(size)
        assert array.size == size and array.ctypes.data % PAGE_NBYTES == 0 and array.flags.c_contiguous


def test_inner_pieces_end_before_outer_ones() -> None:
    with shared_pages():
        empty(1)
        empty(FEW_NBYTES)
        outer = empty(1000)
        with shared_pages():
            assert empty(1000).base is None
        assert empty(1000).base is outer.base is not None
