"""From the grid and selection options to the `Selection` that the library takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .render import printable

if TYPE_CHECKING:
    from ..quantize.select import Selection

GRID_KEYS = ("strategy", "group_size", "symmetric", "scale", "scale_dtype")
KEYS = ("bits", *GRID_KEYS, "include", "exclude")


def selection_given(context: click.Context) -> bool:
    """Whether the user said what to quantize, or how."""
    given = (p.name in KEYS and context.get_parameter_source(p.name) for p in context.command.params)
    return any(source is ParameterSource.COMMANDLINE for source in given)


def selection_from(options: dict[str, Any]) -> Selection:
    """Take the options of `grid_options` and `selection_options` out of `options`."""
    from ..quantize.select import Selection, parse_bits

    grid = {key: options.pop(key) for key in GRID_KEYS}
    rules = parse_bits(options.pop("bits"))
    return Selection(rules, include=options.pop("include"), exclude=options.pop("exclude"), **grid)


def warn_of_rule(rule: str) -> None:
    """One line on stderr for a rule or glob that no tensor falls under: a typo, most likely."""
    click.echo(printable(f"qzc: warning: {rule} has no effect on any tensor"), err=True)


def refuse_selection(context: click.Context, why: str) -> None:
    """Raise click.UsageError if the user gave an option of `grid_options` or `selection_options`."""
    for parameter in context.command.params:
        if parameter.name in KEYS and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.opts[0]} has no meaning here: {why}")
