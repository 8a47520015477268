"""Worker threads: the heavy work runs in compiled code without the GIL."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
    pool = ThreadPoolExecutor(count, thread_name_prefix="qzc")

    def run(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        return pool.map(function, items)

    try:
        yield run
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def thread_count(threads: int) -> int:
    """The number of threads that `threads` stands for, at most MAX_THREADS; InvalidArgumentError below 0."""
    if threads < 0:
        raise InvalidArgumentError(f"{threads} threads: give 0 for all CPUs, or a number above 0")
    if threads:
        return min(threads, MAX_THREADS)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
