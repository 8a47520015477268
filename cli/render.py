"""Tables and JSON on stdout: a fitted table on a terminal, tab-separated values in a pipe, one document with --json."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

Row = TypeVar("Row")
Cell = str | int | float | Sequence[int] | None


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column of a table.

    key: its name in pipes, in JSON-like options such as --sort, and everywhere a program reads it.
    title: its heading on a terminal. cell: its value in a row; None where a row has none. digits: decimals of a float on a
    terminal. rank: on a terminal that is too narrow the columns of highest rank are left out first; 0 always stays.
    """

    key: str
    title: str
    cell: Callable[[Row], Cell]
    digits: int = 2
    rank: int = 0


def print_table(
    columns: Sequence[Column[Row]], rows: Sequence[Row], total: Row | None = None, notes: Sequence[str] = ()
) -> None:
    """Write rows to stdout, `total` last, and then the notes: below the table on a terminal, on stderr in a pipe."""
    if sys.stdout.isatty():
        _print_terminal(columns, rows, total, notes)
        return
    click.echo("\t".join(column.key for column in columns))
    for row in (*rows, *(() if total is None else (total,))):
        click.echo("\t".join(tsv_cell(column.cell(row)) for column in columns))
    for note in notes:
        click.echo(note, err=True)


def print_json(document: dict[str, Any]) -> None:
    """Write one JSON document to stdout. Non-finite numbers have no place in JSON and are a programming error."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def sort_rows(rows: Sequence[Row], column: Column[Row]) -> list[Row]:
    """Texts and shapes ascending, numbers descending, rows without a value last; equal ones keep their order."""
    known = [row for row in rows if column.cell(row) is not None]
    numeric = all(isinstance(column.cell(row), int | float) for row in known)
    known.sort(key=lambda row: _sort_key(column.cell(row)), reverse=numeric)
    return known + [row for row in rows if column.cell(row) is None]


def printable(text: str) -> str:
    """Text on one line and without control characters: names come from files, and files may come from anywhere."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def tsv_cell(value: Cell) -> str:
    """A value in a pipe: integers exact, floats with six decimals, nothing truncated; empty for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6f}"
    return _plain(value)


def terminal_cell(value: Cell, digits: int = 2) -> str:
    """A value on a terminal: thousands separated, floats rounded, a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else _plain(value)


def _plain(value: str | int | Sequence[int]) -> str:
    if isinstance(value, str):
        return printable(value)
    return str(value) if isinstance(value, int) else str(list(value))


def _sort_key(value: Cell) -> Any:
    return (list(value),) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _print_terminal(
    columns: Sequence[Column[Row]], rows: Sequence[Row], total: Row | None, notes: Sequence[str]
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    every_row = [*rows, *([] if total is None else [total])]
    cells = {c.key: [terminal_cell(c.cell(row), c.digits) for row in every_row] for c in columns}
    shown = _fitting(columns, cells, console)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in shown:
        # Only the first column may wrap: a name is folded, a number never.
        first = column is shown[0]
        right = not any(isinstance(column.cell(row), str | Sequence) for row in rows)
        table.add_column(Text(column.title), justify="right" if right else "left", no_wrap=not first, overflow="fold")
    for i in range(len(every_row)):
        if total is not None and i == len(rows):
            table.add_section()
        table.add_row(*(Text(cells[column.key][i]) for column in shown))
    console.print(table)
    for note in notes:
        console.print(Text(note), soft_wrap=False)
    left_out = [column.title for column in columns if column not in shown]
    if left_out:
        console.print(Text(f"Too narrow for: {', '.join(left_out)}. A wider terminal, a pipe or --json shows them."))


def _fitting(columns: Sequence[Column[Row]], cells: dict[str, list[str]], console: Console) -> Sequence[Column[Row]]:
    """The columns that fit side by side; those of rank 0 in any case. The first may be folded to a third of the width."""
    from rich.cells import cell_len

    widths = {c.key: max(map(cell_len, (c.title, *cells[c.key]))) + 3 for c in columns}
    name = columns[0].key
    widths[name] = min(widths[name], max(24, console.width // 3))
    shown = list(columns)
    while sum(widths[c.key] for c in shown) > console.width:
        least = max(shown, key=lambda c: c.rank)
        if least.rank == 0:
            break
        shown.remove(least)
    return shown
