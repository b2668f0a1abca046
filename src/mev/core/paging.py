"""Pages of lists: up to `limit` rows, and the cursor from which the next page starts."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import TypeVar

import orjson

from mev.core.errors import InvalidInputError

Row = TypeVar("Row")
Cursor = TypeVar("Cursor")


class InvalidCursorError(InvalidInputError):
    """The cursor does not belong to this list."""

    code = "invalid_cursor"

    def __init__(self) -> None:
        super().__init__("cursor: not one of this list; start again without it", parameter="cursor")


def page_of(
    rows: Sequence[Row], limit: int, cursor_of: Callable[[Row], Cursor]
) -> tuple[Sequence[Row], Cursor | None]:
    """Return the first `limit` of `rows` and the cursor of the last one; None: no more rows."""
    page = rows[:limit]
    return page, cursor_of(page[-1]) if len(rows) > limit else None


def rows_after(
    rows: Sequence[Row], cursor: str | None, cursor_of: Callable[[Row], str]
) -> Sequence[Row]:
    """Return the rows after the one of `cursor`, all of them without a cursor.

    :raises InvalidCursorError: when no row has it; the first page would look like the next one.
    """
    if not cursor:
        return rows
    for index, row in enumerate(rows):
        if cursor_of(row) == cursor:
            return rows[index + 1 :]
    raise InvalidCursorError


def encode_cursor(position: Sequence[object]) -> str:
    """Return an opaque cursor that holds `position`."""
    return base64.urlsafe_b64encode(orjson.dumps(position)).decode()


def decode_cursor(cursor: str) -> list[object]:
    """Return the position in a cursor; its values are the client's and must be checked.

    :raises InvalidCursorError: when :func:`encode_cursor` did not make it.
    """
    try:
        position = orjson.loads(base64.urlsafe_b64decode(cursor.encode()))
    except (binascii.Error, ValueError):
        raise InvalidCursorError from None
    if not isinstance(position, list):
        raise InvalidCursorError
    return position
