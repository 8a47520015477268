"""The `qzc` command: finds the subcommand, and turns every failure into one line on stderr and an exit code."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

import click

from ..codec.errors import QzcError
from ..version import VERSION
from .signals import catch_signals

COMMANDS = (
    "pack", "unpack", "verify", "ls", "info", "stats", "report", "roofline", "cat", "bench", "calibrate", "eval",
    "pareto",
)  # fmt: skip
FILES = {"eval": "evaluate"}  # where a command has not the name of its module
INTERRUPTED, BROKEN_PIPE = 130, 141


class _Commands(click.Group):
    """Loads a command when it is named: each brings imports that the others should not wait for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"..{FILES.get(cmd_name, cmd_name)}", __name__).command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGone from error  # click would report a failure


class _ReaderGone(Exception):
    """Whoever read our output has ended, as `head` does."""


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
    catch_signals()
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code. Every failure is one line on stderr, and no exception comes out."""
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
    except click.Abort:
        return _fail("interrupted", INTERRUPTED)
    except (_ReaderGone, BrokenPipeError):
        _silence_stdout()
        return BROKEN_PIPE
    except MemoryError:
        return _fail("out of memory", 1)
    except OSError as error:
        _silence_stdout()
        # The library names the files that it cannot read or write; what has no name is a stream.
        place = error.filename or "cannot write to stdout"
        return _fail(f"{place}: {error.strerror or error}", 1)
    except Exception as error:
        if os.environ.get("QZC_DEBUG"):
            raise
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return _fail(f"internal error, please report it ({what}); QZC_DEBUG=1 shows where it happened", 1)


def _silence_stdout() -> None:
    """Python would complain once more while it flushes at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    from .render import printable

    with suppress(OSError):  # nobody is there to be told
        click.echo(f"qzc: {' '.join(printable(line.strip()) for line in message.splitlines())}", err=True)
    return code
