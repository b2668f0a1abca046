"""Tables for terminals and pipes."""

import sys
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from mev.core.text import shown

_DIGITS = 12
_SHORT = 11
"""Widest column that is never wrapped, and least width of a wrapped one.

Where the columns do not fit with these widths, each row is printed as a list.
"""


class Id(str):
    """An id or a digest in a table.

    A terminal shows 12 digits, or more if they are not unique; a pipe shows all.
    """

    __slots__ = ()


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, spare: Sequence[str] = ()
) -> None:
    """Print `rows` under `columns`; control characters are escaped.

    In a terminal, lines fit the width, empty columns are left out, and no :class:`Id` is wrapped.
    Where the terminal is too narrow, columns in `spare` are left out, the first ones first; if that
    is not enough, each row is a list of names and values. In a pipe each row is one line, and
    nothing is cut.
    """
    found = [list(row) for row in rows]
    if sys.stdout.isatty():
        _print_fitting(columns, found, spare)
    else:
        _print_whole(
            columns, [[shown(str(cell)).replace("\n", "\\n") for cell in row] for row in found]
        )


def _print_fitting(columns: Sequence[str], rows: list[list[object]], spare: Sequence[str]) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    kept = [
        number
        for number in range(len(columns))
        if not rows or any(row[number] != "" for row in rows)
    ]
    cells = {number: _cells([row[number] for row in rows]) for number in kept}
    whole, least = set[int](), dict[int, int]()
    for number in kept:
        width = max(map(cell_len, (columns[number], *cells[number])))
        is_whole = width <= _SHORT or any(isinstance(row[number], Id) for row in rows)
        whole |= {number} if is_whole else set()
        least[number] = width if is_whole else max(_SHORT, cell_len(columns[number]))
    left = [number for name in spare for number in kept if columns[number] == name]
    fitting = list(kept)
    while _width([least[number] for number in fitting]) > console.width and left:
        fitting.remove(left.pop(0))
    if _width([least[number] for number in fitting]) > console.width:
        names = [columns[number] for number in kept]
        _print_lists(console, names, list(zip(*(cells[number] for number in kept), strict=True)))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number in fitting:
        table.add_column(columns[number], no_wrap=number in whole, overflow="fold")
    for row_cells in zip(*(cells[number] for number in fitting), strict=True):
        table.add_row(*row_cells)
    console.print(table)


def _width(columns: Sequence[int]) -> int:
    """Return the width of a table with columns of these widths."""
    return sum(columns) + 2 * (len(columns) - 1)


def _print_lists(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for place, row in enumerate(rows):
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold", no_wrap=True, width=max(map(cell_len, columns)))
        table.add_column(overflow="fold")
        for name, cell in zip(columns, row, strict=True):
            if cell:
                table.add_row(name, cell)
        if place:
            console.print()
        console.print(table)


def _cells(column: Sequence[object]) -> list[str]:
    length = _length([str(cell) for cell in column if isinstance(cell, Id)])
    return [shown(cell[:length] if isinstance(cell, Id) else str(cell)) for cell in column]


def _length(ids: Sequence[str]) -> int:
    """Return the length of unique prefixes of `ids`, at least 12 digits."""
    least = _DIGITS + any("-" in one[:_DIGITS] for one in ids)
    different, longest = len(set(ids)), max(map(len, ids), default=0)
    return next(
        (n for n in range(least, longest) if len({one[:n] for one in ids}) == different), longest
    )


def _print_whole(columns: Sequence[str], rows: list[list[str]]) -> None:
    lines = [list(columns), *rows]
    widths = [max(cell_len(line[number]) for line in lines) for number in range(len(columns))]
    for line in lines:
        cells = (
            cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)
        )
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
