"""Runs the `qzc` command for tests: in this process where that is enough, else in one of its own."""

from __future__ import annotations

import ctypes
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qzc
from qzc.cli.main import run

PYTHONPATH = str(Path(qzc.__file__).parent.parent)
Argument = str | Path | int


@dataclass(frozen=True)
class Result:
    """What a run left behind."""

    code: int
    raw: bytes
    stderr: str

    @property
    def stdout(self) -> str:
        return self.raw.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def table(self) -> list[dict[str, str]]:
        """The rows of tab-separated values."""
        head, *rows = (line.split("\t") for line in self.stdout.splitlines())
        return [dict(zip(head, row, strict=True)) for row in rows]

    @property
    def error(self) -> str:
        """The one line on stderr that a failure must be."""
        lines = self.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith("qzc: "), self.stderr
        return lines[0].removeprefix("qzc: ")


def inside(*arguments: Argument) -> Result:
    """Run in this process: no start-up, no compiling."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        code = run([str(argument) for argument in arguments])
    written = [stream.buffer.getvalue() for stream in (out, err) if isinstance(stream.buffer, io.BytesIO)]
    return checked(code, written[0], written[1].decode())


def ok(*arguments: Argument) -> Result:
    """Run in this process what must succeed."""
    result = inside(*arguments)
    assert result.code == 0, result.stderr
    return result


def command(*arguments: Argument) -> list[str]:
    return [sys.executable, "-m", "qzc", *map(str, arguments)]


def environment(**more: str | None) -> dict[str, str]:
    """That of this process with the package on the path; None takes a variable out."""
    merged: dict[str, str | None] = {**os.environ, "PYTHONUNBUFFERED": None, "PYTHONPATH": PYTHONPATH, **more}
    return {name: value for name, value in merged.items() if value is not None}


def process(*arguments: Argument, env: dict[str, str | None] | None = None, **options: Any) -> Result:
    """Run in a process of its own. options: of `subprocess.run`."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 100} | options
    done: subprocess.CompletedProcess[Any] = subprocess.run(
        command(*arguments), env=environment(**(env or {})), check=False, **options
    )
    out, err = (bytes(stream or b"") for stream in (done.stdout, done.stderr))
    return checked(done.returncode, out, err.decode())


def checked(code: int, raw: bytes, stderr: str) -> Result:
    """No run may show a traceback, a warning of Python or an internal error."""
    for sign in ("Traceback", "internal error", "Exception ignored", "Warning:"):
        assert sign not in stderr, stderr
    return Result(code, raw, stderr)


def without_privilege() -> Callable[[], None] | None:
    """For `preexec_fn`: makes file permissions count for root as well. None where that is not needed or not possible."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    drop, overriding, searching = 24, 1, 2  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH

    def give_up() -> None:
        prctl(drop, overriding, 0, 0, 0)
        prctl(drop, searching, 0, 0, 0)

    return give_up
