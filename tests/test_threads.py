"""The map of several threads: order, errors, and what is not begun after one."""

import threading
import time

import pytest

from qzc.codec.batch import PIECE_NBYTES, _pieces
from qzc.threads import thread_map


def test_results_come_in_order_whatever_the_order_of_ending() -> None:
    def slow_at_first(i: int) -> int:
        time.sleep(0.02 if i < 2 else 0)
        return i * i

    with thread_map(3) as run:
        assert list(run(slow_at_first, range(50))) == [i * i for i in range(50)]
        assert list(run(slow_at_first, ())) == []


@pytest.mark.parametrize("threads", (2, 3))
def test_all_threads_take_part(threads: int) -> None:
    meeting = threading.Barrier(threads, timeout=10)
    with thread_map(threads) as run:
        assert sorted(run(lambda _: meeting.wait(), range(threads))) == list(range(threads))


def test_an_error_is_raised_in_its_turn_and_ends_what_is_not_begun() -> None:
    begun: list[int] = []
    ended: list[int] = []

    def call(i: int) -> int:
        begun.append(i)
        if i == 1:
            raise ValueError("call 1")
        time.sleep(0.1 if i > 1 else 0)
        ended.append(i)
        return i

    results: list[int] = []
    with thread_map(2) as run:
        with pytest.raises(ValueError, match="call 1"):
            for result in run(call, range(100)):
                results.append(result)
        # What has begun may write to memory that is used again.
        assert sorted(begun) == sorted([*ended, 1])
        assert list(run(abs, range(9))) == list(range(9))
    assert results == [0]
    assert len(begun) <= 4


def test_an_interrupted_caller_ends_what_is_not_begun() -> None:
    begun: list[int] = []
    go_on = threading.Event()

    def call(i: int) -> None:
        begun.append(i)
        go_on.wait(10)

    with pytest.raises(KeyboardInterrupt), thread_map(2) as run:
        run(call, range(100))
        threading.Timer(0.2, go_on.set).start()
        raise KeyboardInterrupt
    assert len(begun) <= 1


def test_pieces_get_smaller_towards_the_end() -> None:
    coders, sizes = [2] * 800 + [8] * 40, [1 << 17] * 800 + [1000] * 40
    with thread_map(2) as run:
        pieces = _pieces(coders, sizes, run)
    assert [i for _, start, stop in pieces for i in range(start, stop)] == list(range(840))
    assert all(set(coders[start:stop]) == {coder} for coder, start, stop in pieces)
    nbytes = [sum(sizes[start:stop]) for _, start, stop in pieces]
    assert max(nbytes) == nbytes[0] == PIECE_NBYTES
    large = [n for (coder, _, _), n in zip(pieces, nbytes, strict=True) if coder == 2]
    assert large == sorted(large, reverse=True) and large[-1] == 1 << 17
    assert _pieces([2], [5], run) == _pieces([2], [5], map) == [(2, 0, 1)]
    assert _pieces(coders, sizes, map) == [(2, 0, 512), (2, 512, 800), (8, 800, 840)]


def test_calls_may_map_on_the_threads_that_they_run_on() -> None:
    with thread_map(2) as run:
        assert list(run(lambda n: sum(run(abs, range(-n, 0))), range(20))) == [n * (n + 1) // 2 for n in range(20)]


def test_an_interrupt_while_the_caller_works_reaches_it() -> None:
    def call(i: int) -> None:
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt), thread_map(2) as run:
        list(run(call, range(100)))
