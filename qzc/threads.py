"""Worker threads: the heavy work runs in compiled code without the GIL."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any

from .codec.errors import InvalidArgumentError
from .codec.run_map import RunMap

MAX_THREADS = 256  # more have never helped, and systems refuse some thousands


@contextmanager
def thread_map(threads: int) -> Iterator[RunMap]:
    """A `map` that runs on `threads` threads (0: as many as there are CPUs for this process), the caller's own among them.

    It gives results in order; the caller works while it waits for one. When a call fails, or the caller is interrupted, calls
    not yet begun are dropped, and those that have begun are waited for.
    """
    count = thread_count(threads)
    if count == 1:
        yield map
        return
    closing = Event()
    pool = ThreadPoolExecutor(count - 1, thread_name_prefix="qzc")

    def run(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        work = _Work(function, deque((Future[Any](), item) for item in items))
        results = deque(future for future, _ in work.todo)
        for _ in range(min(count, len(results)) - 1):
            pool.submit(work.do_all, closing)
        return _in_order(results, work)

    try:
        yield run
    finally:
        closing.set()
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class _Work:
    """Calls of a function that have not begun. Each thread takes calls until there is none.

    To hand over each call by itself, as `ThreadPoolExecutor.map` does, takes so long that the second thread begins when a small
    model is half decoded.
    """

    function: Callable[[Any], Any]
    todo: deque[tuple[Future[Any], Any]]

    def do_all(self, closing: Event) -> None:
        while not closing.is_set() and self.do_next():
            pass

    def do_next(self) -> bool:
        """Do one call. Returns whether there was one."""
        try:
            future, item = self.todo.popleft()
        except IndexError:
            return False
        try:  # from here on, for who waits for a call must not wait for ever when its thread is interrupted
            if future.set_running_or_notify_cancel():
                future.set_result(self.function(item))
        except BaseException as error:
            future.set_exception(error)
        return True


def _in_order(results: deque[Future[Any]], work: _Work) -> Iterator[Any]:
    try:
        while results:
            while not results[0].done() and work.do_next():
                pass
            yield results.popleft().result()
    finally:
        # Calls that have begun may still write to memory that the caller is about to use for something else.
        wait([future for future in results if not future.cancel()])


def thread_count(threads: int) -> int:
    """The number of threads that `threads` stands for, at most MAX_THREADS; InvalidArgumentError below 0."""
    if threads < 0:
        raise InvalidArgumentError(f"{threads} threads: give 0 for all CPUs, or a number above 0")
    if threads:
        return min(threads, MAX_THREADS)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
