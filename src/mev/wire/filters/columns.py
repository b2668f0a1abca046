"""A block of events in columns: each event is decoded once, each field extracted once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError, Message

from mev.core import native
from mev.wire.filters.fields import Path
from mev.wire.filters.scalars import Value
from mev.wire.registry import EventType

if TYPE_CHECKING:
    from mev._native import EventBlock


@dataclass(frozen=True, slots=True)
class FieldColumn:
    """The values of one field: ``values[i]`` belongs to event ``rows[i]``.

    `rows` is ascending. It is a range if each event has exactly one value; otherwise an event may
    have several values or none.
    """

    rows: Sequence[int]
    values: Sequence[Value]


class Columns:
    """The fields of `values`, encoded events of one type.

    An event that cannot be decoded has no values.
    """

    def __init__(self, type_: EventType, values: Sequence[bytes]) -> None:
        self.type = type_
        self._values = values
        self._columns: dict[str, FieldColumn] = {}

    def __len__(self) -> int:
        return len(self._values)

    def column(self, path: Path) -> FieldColumn:
        """Return the values of a field."""
        column = self._columns.get(path.text)
        if column is None:
            column = self._columns[path.text] = _column(path, *self._decoded)
        return column

    @cached_property
    def native(self) -> "EventBlock | None":
        """The events for filters in the native module; None if Python decodes them."""
        if not native.is_used():
            return None
        from mev.wire.filters import native_filters  # noqa: PLC0415 - needs the native module

        return native_filters.block(self.type, self._values)

    @cached_property
    def _decoded(self) -> tuple[Sequence[int], list[Message]]:
        decode = self.type.message.FromString
        try:
            return range(len(self._values)), list(map(decode, self._values))
        except DecodeError:
            return _decodable(self.type.message, self._values)


def _decodable(message: type[Message], values: Sequence[bytes]) -> tuple[list[int], list[Message]]:
    rows, messages = [], []
    for row, value in enumerate(values):
        try:
            messages.append(message.FromString(value))
        except DecodeError:
            continue
        rows.append(row)
    return rows, messages


def _column(path: Path, rows: Sequence[int], messages: list[Message]) -> FieldColumn:
    values: list[Any] = messages
    for step in path.steps:
        values = list(map(attrgetter(step.name), values))
        if step.repeated:
            rows = list(chain.from_iterable(map(repeat, rows, map(len, values))))
            values = list(chain.from_iterable(values))
    if path.key is None:
        return FieldColumn(rows, values)
    found = [
        (row, value)
        for row, entries in zip(rows, values, strict=True)
        if (value := entries.get(path.key)) is not None
    ]
    return FieldColumn([row for row, _ in found], [value for _, value in found])
