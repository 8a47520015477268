"""A progress bar on stderr, for people at a terminal only."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from .signals import when_stopped

Progress = Callable[[str, int, int], None]
WIDTH = 40


@contextmanager
def progress_bar(title: str, quiet: bool) -> Iterator[Progress | None]:
    """Yields a callback `(what is being done, bytes done, bytes in total)`, or None where no bar is wanted."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from .render import printable

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[doing]}", style="dim", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    with when_stopped(partial(os.write, 2, b"\r\x1b[K\x1b[?25h")), bar:  # clears the line, shows the cursor again
        task = bar.add_task(title, total=None, doing="")

        def update(doing: str, done: int, total: int) -> None:
            # The end of a name tells more than its beginning. All of it is in the report; this line is gone in a moment.
            text = printable(doing)
            bar.update(task, completed=done, total=total, doing=text if len(text) <= WIDTH else "…" + text[1 - WIDTH :])

        yield update
