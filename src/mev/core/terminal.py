"""What people see in a terminal."""

import sys
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from mev.core.text import shown

_DIGITS = 12
_SHORT, _LEAST = 11, 6
"""A column that needs no more than the first is not broken, where at least the second is left for each that is."""


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


def _print_fitting(columns: Sequence[str], rows: list[list[object]]) -> None:
    console, table = Console(highlight=False, markup=False, emoji=False), Table(box=None, header_style="bold", pad_edge=False)
    cells = [_cells([row[number] for row in rows]) for number in range(len(columns))]
    ids = {number for number in range(len(columns)) if any(isinstance(row[number], Id) for row in rows)}
    widths = [max(map(cell_len, (name, *column))) for name, column in zip(columns, cells, strict=True)]
    whole = {number for number, width in enumerate(widths) if number in ids or width <= _SHORT}
    if sum(widths[number] if number in whole else _LEAST for number in range(len(widths))) + 2 * (len(widths) - 1) > console.width:
        whole = ids
    for number, name in enumerate(columns):
        table.add_column(name, no_wrap=number in whole, overflow="fold")
    for row_cells in zip(*cells, strict=True):
        table.add_row(*row_cells)
    console.print(table)


def _cells(column: Sequence[object]) -> list[str]:
    length = _length([str(cell) for cell in column if isinstance(cell, Id)])
    return [shown(cell[:length] if isinstance(cell, Id) else str(cell)) for cell in column]


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
