"""Worker threads: the heavy work runs in compiled code without the GIL."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

from .codec.errors import InvalidArgumentError
from .codec.run_map import RunMap

MAX_THREADS = 256  # more have never helped, and systems refuse some thousands


@contextmanager
def thread_map(threads: int) -> Iterator[RunMap]:
    """A `map` that runs on `threads` threads (0: as many as there are CPUs for this process; 1: the caller's own).

    It gives results in order. When a call fails, or the caller is interrupted, calls not yet begun are dropped.
    """
    count = thread_count(threads)
    if count == 1:
        yield map
        return
    closing = Event()
    pool = ThreadPoolExecutor(count, thread_name_prefix="qzc")

    def run(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        todo = deque((Future[Any](), item) for item in items)
        results = deque(future for future, _ in todo)
        for _ in range(min(count, len(todo))):
            pool.submit(_work, function, todo, closing)
        return _in_order(results)

    try:
        yield run
    finally:
        closing.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _work(function: Callable[[Any], Any], todo: deque[tuple[Future[Any], Any]], closing: Event) -> None:
    """What each of the threads does: take calls from `todo` until there is none.

    To hand over each call by itself, as `ThreadPoolExecutor.map` does, takes so long that the second thread begins when a small
    model is half decoded.
    """
    while not closing.is_set():
        try:
            future, item = todo.popleft()
        except IndexError:
            return
        if not future.set_running_or_notify_cancel():
            continue
        try:
            result = function(item)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)
            del result
        del future, item  # the next call may need the memory


def _in_order(results: deque[Future[Any]]) -> Iterator[Any]:
    try:
        while results:
            yield results.popleft().result()
    finally:
        for future in results:
            future.cancel()


def thread_count(threads: int) -> int:
    """The number of threads that `threads` stands for, at most MAX_THREADS; InvalidArgumentError below 0."""
    if threads < 0:
        raise InvalidArgumentError(f"{threads} threads: give 0 for all CPUs, or a number above 0")
    if threads:
        return min(threads, MAX_THREADS)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
