"""What people see in a terminal."""

import sys
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from mev.core.text import shown

_DIGITS = 12


class Id(str):
    """An id or a digest in a table. A terminal shows 12 digits of it, more where they do not tell it from others; a pipe gets all."""

    __slots__ = ()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print `rows` under `columns`. What others wrote is shown and moves no cursor.

    A terminal gets lines that fit into it, and no :class:`Id` is broken there. In a pipe a row is a line, and nothing is cut.
    """
    found = [list(row) for row in rows]
    if sys.stdout.isatty():
        _print_fitting(columns, found)
    else:
        _print_whole(columns, [[shown(str(cell)).replace("\n", "\\n") for cell in row] for row in found])


def counted(number: int, noun: str) -> str:
    """Return a number of things: ``1 part``, ``2 parts``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _print_fitting(columns: Sequence[str], rows: list[list[object]]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, name in enumerate(columns):
        ids = [str(row[number]) for row in rows if isinstance(row[number], Id)]
        length = _length(ids)
        for row in rows:
            row[number] = str(row[number])[:length] if isinstance(row[number], Id) else row[number]
        table.add_column(name, no_wrap=bool(ids), overflow="fold")
    for row in rows:
        table.add_row(*(shown(str(cell)) for cell in row))
    Console(highlight=False, markup=False, emoji=False).print(table)


def _length(ids: Sequence[str]) -> int:
    """Return how much of each of `ids` tells them apart, 12 digits at least."""
    least = _DIGITS + any("-" in one[:_DIGITS] for one in ids)
    different, longest = len(set(ids)), max(map(len, ids), default=0)
    return next((n for n in range(least, longest) if len({one[:n] for one in ids}) == different), longest)


def _print_whole(columns: Sequence[str], rows: list[list[str]]) -> None:
    lines = [list(columns), *rows]
    widths = [max(cell_len(line[number]) for line in lines) for number in range(len(columns))]
    for line in lines:
        cells = (cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
