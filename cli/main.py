"""The `qzc` command: finds the subcommand, and turns every failure into one line on stderr and an exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

import click

from ..codec.errors import QzcError
from ..version import VERSION

COMMANDS = ("pack", "unpack", "verify", "ls", "info", "stats", "cat", "bench")
BROKEN_PIPE = 141
STOPPED = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
PATIENCE = 2.0  # seconds


class _Commands(click.Group):
    """Loads a command when it is named: each brings imports that the others should not wait for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"..{cmd_name}", __name__).command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGone from error  # click would report a failure


class _ReaderGone(Exception):
    """Whoever read our output has ended, as `head` does."""


class _Stopped(BaseException):
    """A signal that asks us to end. Raised where the main thread is, so that half-written files are removed."""

    def __init__(self, number: int) -> None:
        self.number = number


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Results go to stdout, everything else to stderr.\n\n\b\n"
    "Exit codes: 0 ok, 1 failure (files, memory), 2 usage, 3 corrupt or not verified,\n"
    "            4 unsupported, 130 interrupted",
)
@click.version_option(VERSION, prog_name="qzc")
def cli() -> None:
    """Entropy-code model weights: quantize, measure, pack, load.

    \b
    qzc pack model.safetensors --bits 4 --coder ans     -> model.qzc
    qzc stats model.safetensors                         what coding gains, against gzip and zstd
    qzc unpack model.qzc -o restored.safetensors
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and leave the process with its exit code."""
    if sys.stdout is None:  # started with a closed stdout
        sys.stdout = open(os.devnull, "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text in any encoding
    _catch_signals()
    sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int:
    try:
        result = cli.main(arguments, prog_name="qzc", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "qzc"
        return _fail(f"{error.format_message().rstrip('.')}; see {path} --help", error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except QzcError as error:
        return _fail(str(error), error.exit_code)
    except _Stopped as stopped:
        return _fail(STOPPED[signal.Signals(stopped.number).name], 128 + stopped.number)
    except (_ReaderGone, BrokenPipeError):
        _silence_stdout()
        return BROKEN_PIPE
    except MemoryError:
        return _fail("out of memory", 1)
    except OSError as error:
        return _fail(f"cannot write {_place(error)}: {error.strerror or error}", 1)
    except Exception as error:
        if os.environ.get("QZC_DEBUG"):
            raise
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return _fail(f"internal error, please report it ({what}); QZC_DEBUG=1 shows where it happened", 1)


def _place(error: OSError) -> str:
    """The file that an error of the operating system is about; stdout, if that fails again."""
    try:
        sys.stdout.flush()
    except OSError:
        _silence_stdout()
        return "to stdout"
    return str(error.filename or "the output")


def _silence_stdout() -> None:
    """Python would complain once more while it flushes at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    from .render import printable

    with suppress(OSError):  # nobody is there to be told
        click.echo(f"qzc: {' '.join(printable(line.strip()) for line in message.splitlines())}", err=True)
    return code


def _catch_signals() -> None:
    quiet_until = 0.0

    def stop(number: int, frame: object) -> None:
        # The second press of an impatient user would otherwise hit the removal of half-written files.
        nonlocal quiet_until
        if time.monotonic() >= quiet_until:
            quiet_until = time.monotonic() + PATIENCE
            raise _Stopped(number)

    for name in STOPPED:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup, `&` in scripts
            signal.signal(number, stop)
