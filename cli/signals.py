"""SIGINT, SIGTERM and SIGHUP: half-written files are removed, one line is written, and the process ends at once.

Nothing is raised. An exception that a signal handler raises comes out wherever the program happens to be, and where that
is an import or a callback of the compiler it is printed and swallowed: one interruption in ten was lost that way.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
_cleanups: list[Callable[[], object]] = []


@contextmanager
def when_stopped(cleanup: Callable[[], object]) -> Iterator[None]:
    """Within this context a signal that ends the process calls `cleanup` first, which may be called twice."""
    _cleanups.append(cleanup)
    try:
        yield
    finally:
        _cleanups.remove(cleanup)


def catch_signals() -> None:
    """Install the handlers. Signals that are ignored stay so: `nohup`, and `&` in scripts."""
    for name in _WORDS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: object) -> None:
    for cleanup in reversed(_cleanups):
        with suppress(Exception):
            cleanup()
    atomic = sys.modules.get(__name__.replace("cli.signals", "formats.atomic"))
    if atomic is not None:  # else nothing has been written
        atomic.discard_unfinished()
    with suppress(OSError):
        # Not through sys.stderr, which may be in the middle of something.
        os.write(2, f"qzc: {_WORDS[signal.Signals(number).name]}\n".encode())
    os._exit(128 + number)
