"""Options of the commands that run models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

text_argument = click.argument("text", nargs=-1, required=True)
device_option = click.option("--device", metavar="NAME", default="cpu", show_default=True, help="Where torch computes.")


def window_options(function: Command) -> Command:
    """How texts are cut."""
    for option in (
        click.option(
            "--special-tokens/--no-special-tokens",
            default=None,
            help="Begin and end each window as the tokenizer does a text.  [default: for text that an encoder reads]",
        ),
        click.option(
            "--window-length", type=click.IntRange(min=2), default=256, show_default=True, metavar="N", help="Tokens."
        ),
        click.option(
            "--windows",
            type=click.IntRange(min=1),
            default=200,
            show_default=True,
            metavar="N",
            help="At most; the first ones, from several texts in turn.",
        ),
    ):
        function = option(function)
    return function
