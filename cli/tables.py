"""Tables for other programs and for documents: CSV and Markdown on stdout, one table or several."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal

import click

from .options import Command, json_option
from .render import Column, Row, print_table, printable, terminal_cell, tsv_cell

Format = Literal["table", "json", "csv", "md"]


def format_options(command: Command) -> Command:
    """`--json`, `--csv`, `--md`; see `chosen_format`."""
    options = (
        json_option,
        click.option("--csv", "as_csv", is_flag=True, help="Write CSV to stdout."),
        click.option("--md", "as_markdown", is_flag=True, help="Write Markdown to stdout."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def chosen_format(options: dict[str, Any]) -> Format:
    """Takes the options of `format_options` out of `options`."""
    keys: dict[str, Format] = {"as_json": "json", "as_csv": "csv", "as_markdown": "md"}
    given = [name for key, name in keys.items() if options.pop(key)]
    if len(given) > 1:
        raise click.UsageError("--json, --csv and --md exclude each other")
    return given[0] if given else "table"


@dataclass(frozen=True)
class Table(Generic[Row]):
    """One of several tables. name: in pipes; title: on a terminal."""

    name: str
    title: str
    columns: Sequence[Column[Row]]
    rows: Sequence[Row]
    totals: Sequence[Row] = field(default=())


def print_tables(tables: Sequence[Table[Any]], form: Format, notes: Sequence[str] = ()) -> None:
    """One table as `print_table`, `print_csv` and `print_markdown` write it; of several each under its name.

    In a pipe and in CSV the name is a line `# NAME`, and an empty line ends a table. notes: below a table on a terminal, else
    on stderr.
    """
    for number, table in enumerate(tables):
        last = number == len(tables) - 1
        rows = [*table.rows, *table.totals]
        if form == "md":
            if len(tables) > 1:
                click.echo(f"## {table.title}\n")
            print_markdown(table.columns, rows)
        else:
            if len(tables) > 1:
                click.echo(table.title if form == "table" and sys.stdout.isatty() else f"# {table.name}")
            _print(table, rows, form, notes if last else ())
        if not last:
            click.echo()
    for note in notes if form != "table" else ():
        click.echo(note, err=True)


def _print(table: Table[Any], rows: Sequence[Any], form: Format, notes: Sequence[str]) -> None:
    if form == "csv":
        print_csv(table.columns, rows)
    elif len(table.totals) == 1:
        print_table(table.columns, table.rows, table.totals[0], notes)
    else:
        print_table(table.columns, rows, None, notes)


def print_csv(columns: Sequence[Column[Row]], rows: Sequence[Row]) -> None:
    """Comma-separated values under the columns' keys, quoted as RFC 4180 says; cells as in a pipe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.key for column in columns)
    writer.writerows([tsv_cell(column.cell(row)) for column in columns] for row in rows)
    click.echo(text.getvalue(), nl=False)


def print_markdown(columns: Sequence[Column[Row]], rows: Sequence[Row]) -> None:
    """A Markdown table under the columns' titles; cells as on a terminal, numbers to the right."""
    numeric = [not any(isinstance(c.cell(row), str | Sequence) for row in rows) for c in columns]
    lines = [[c.title for c in columns], ["---:" if right else "---" for right in numeric]]
    lines += [[_cell(terminal_cell(c.cell(row), c.digits)) for c in columns] for row in rows]
    for line in lines:
        click.echo(f"| {' | '.join(line)} |")


def _cell(text: str) -> str:
    return printable(text).replace("\\", "\\\\").replace("|", "\\|")
