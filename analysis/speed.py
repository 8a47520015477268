"""How fast functions run beside each other: taking turns, so that all of them see the same moods of the machine."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)

SHORTEST = 0.004  # seconds: what takes less is repeated, so that neither clock nor starting threads weighs anything
FEWEST = 3  # runs of each function, however slow


@dataclass(frozen=True)
class Timing:
    """Wall seconds of one run of a function. runs: how often it was timed."""

    best: float
    median: float
    runs: int


@dataclass(frozen=True)
class Race:
    """What `take_turns` measured. clock_ghz: the fastest clock seen, so the best times are those to turn into cycles."""

    timings: Mapping[Hashable, Timing]
    clock_ghz: float


def take_turns(
    jobs: Mapping[Key, tuple[Callable[[], object], ...]],
    seconds: float,
    clock: Callable[[], float] | None = None,
) -> Race:
    """Time each job, for about `seconds` in all.

    A job is one function for each thread that it is to run on; its time ends when the last of them does. Jobs take turns;
    a slow one sits out where it had more than its share, so its runs are spread over the whole time like all others. Each
    is timed at least three times, even if that takes longer than `seconds`. The first two runs of each are not counted.
    clock: gives the clock of the CPU in GHz, and is asked between rounds; `clock_ghz` by default.
    """
    clock = clock or clock_ghz
    with ThreadPoolExecutor(max((len(job) for job in jobs.values()), default=1), thread_name_prefix="race") as pool:
        repeats: dict[Key, int] = {}
        for key, job in jobs.items():
            _timed(pool, job, 1)
            repeats[key] = max(1, ceil(SHORTEST / _timed(pool, job, 1)))
        times: dict[Key, list[float]] = {key: [] for key in jobs}
        spent = dict.fromkeys(jobs, 0.0)
        fastest = clock()
        collecting = gc.isenabled()
        gc.disable()  # a collection would be charged to whoever has the turn
        try:
            began = time.perf_counter()
            while True:
                elapsed = time.perf_counter() - began
                over = elapsed >= seconds
                if over and all(len(runs) >= FEWEST for runs in times.values()):
                    break
                for key, job in jobs.items():
                    had_enough = len(times[key]) >= FEWEST if over else spent[key] > elapsed / len(jobs)
                    if had_enough:
                        continue
                    taken = _timed(pool, job, repeats[key])
                    spent[key] += taken
                    times[key].append(taken / repeats[key])
                fastest = max(fastest, clock())
        finally:
            if collecting:
                gc.enable()
    return Race({key: Timing(min(runs), median(runs), len(runs)) for key, runs in times.items()}, fastest)


def clock_ghz() -> float:
    """The clock of the CPU now, in GHz: a chain of operations that take one cycle each. About half a millisecond."""
    import numpy as np

    from ..codec.kernels import clock

    steps, a, b = 100_000, np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
    clock.chain(1, a, a, b)
    best = min(_seconds(lambda: clock.chain(steps, a, a, b)) for _ in range(5))
    return steps * clock.CYCLES / best / 1e9


def _timed(pool: ThreadPoolExecutor, job: tuple[Callable[[], object], ...], repeats: int) -> float:
    if len(job) == 1:
        return _seconds(lambda: _repeat(job[0], repeats))
    return _seconds(lambda: list(pool.map(lambda part: _repeat(part, repeats), job)))


def _repeat(function: Callable[[], object], times: int) -> None:
    for _ in range(times):
        function()


def _seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began
