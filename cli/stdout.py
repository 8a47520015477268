"""`-o -`: output that is written whole to a temporary file first, then copied to stdout."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click

from .signals import when_stopped


def check_stdout(model: Path | None = None) -> None:
    """Refuse to write binary data to a terminal, and what comes from a folder to anything but a folder.

    Done before the work. Raises click.UsageError; as `open_checkpoint`.
    """
    from ..formats.checkpoint import open_checkpoint

    if sys.stdout.isatty():
        raise click.UsageError("binary data does not belong on a terminal: redirect stdout, or name a file with -o")
    if model is not None and open_checkpoint(model).is_folder:
        raise click.UsageError(f"{model} is a folder, and a folder cannot go to stdout: name one with -o")


@contextmanager
def to_stdout() -> Iterator[Path]:
    """A path to write a file to; when the context ends without an exception the file goes to stdout."""
    with tempfile.TemporaryDirectory(prefix="qzc-") as folder, when_stopped(partial(shutil.rmtree, folder)):
        path = Path(folder) / "stdout"
        yield path
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
        sys.stdout.buffer.flush()
