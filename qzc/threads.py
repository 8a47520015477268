"""Worker threads: the heavy work runs in compiled code without the GIL."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Condition, Event
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
        work = _Work(function, [_Call(item) for item in items])
        for _ in range(min(count, len(work.calls)) - 1):
            pool.submit(work.do_all, closing)
        return work.results()

    try:
        yield run
    finally:
        closing.set()
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(slots=True)
class _Call:
    item: Any
    done: bool = False
    result: Any = None
    error: BaseException | None = None


class _Work:
    """Calls of a function. Each thread takes calls until there is none.

    To hand over each call by itself, as `ThreadPoolExecutor.map` does, takes so long that the second thread begins when a small
    model is half decoded.
    """

    def __init__(self, function: Callable[[Any], Any], calls: list[_Call]) -> None:
        self.function, self.calls = function, calls
        self._todo = deque(calls)
        self._active = 0  # calls that threads of the pool have begun
        self._changed = Condition()

    def do_all(self, closing: Event) -> None:
        """For a thread of the pool."""
        while not closing.is_set():
            with self._changed:
                if not self._todo:
                    return
                call = self._todo.popleft()
                self._active += 1
            self._do(call)
            with self._changed:
                self._active -= 1
                self._changed.notify_all()

    def results(self) -> Iterator[Any]:
        """What the calls return, in order. The caller works while it waits."""
        try:
            for call in self.calls:
                while not call.done:
                    try:
                        own = self._todo.popleft()
                    except IndexError:  # another thread is at it
                        with self._changed:
                            self._changed.wait_for(partial(getattr, call, "done"))
                    else:
                        self._do(own)
                if call.error is not None:
                    raise call.error
                yield call.result
                call.result = None
        finally:
            self._todo.clear()
            # Calls that have begun may still write to memory that the caller is about to use for something else.
            with self._changed:
                self._changed.wait_for(lambda: not self._active)

    def _do(self, call: _Call) -> None:
        try:
            call.result = self.function(call.item)
        except BaseException as error:
            call.error = error
        call.done = True


def thread_count(threads: int) -> int:
    """The number of threads that `threads` stands for, at most MAX_THREADS; InvalidArgumentError below 0."""
    if threads < 0:
        raise InvalidArgumentError(f"{threads} threads: give 0 for all CPUs, or a number above 0")
    if threads:
        return min(threads, MAX_THREADS)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
