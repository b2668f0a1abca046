"""Filters evaluated by the native module, which reads only the fields asked for."""

import functools
from collections.abc import Iterable, Sequence

from mev._native import EventBlock, EventFilter, EventTables
from mev.wire.filters.fields import Path
from mev.wire.filters.scalars import Condition, Value
from mev.wire.native_tables import tables
from mev.wire.registry import EventType

_EXACT = 2**53
_Row = tuple[list[str], str | None, str, list[Value]]


def block(event: EventType, values: Sequence[bytes]) -> EventBlock | None:
    """Return the events for filters, or None when Python must decode them: one may be invalid."""
    try:
        return EventBlock(_tables(event), values)
    except ValueError:
        return None


def compiled(event: EventType, conditions: Iterable[tuple[Path, Condition]]) -> EventFilter | None:
    """Return a filter for blocks of `event`, or None when Python must evaluate a condition."""
    try:
        return EventFilter(_tables(event), [_row(*condition) for condition in conditions])
    except ValueError:
        return None


def _row(path: Path, condition: Condition) -> _Row:
    values = condition.value if isinstance(condition.value, tuple) else (condition.value,)
    return (
        [step.name for step in path.steps],
        path.key,
        str(condition.op),
        [_literal(path, value) for value in values],
    )


def _literal(path: Path, value: Value) -> Value:
    """Return a literal as the field stores it.

    :raises ValueError: if it is an integer that has no equal floating-point number.
    """
    if not path.scalar.floating:
        return value
    if isinstance(value, int) and abs(value) > _EXACT:
        raise ValueError
    return float(path.scalar.stored(value))


@functools.cache
def _tables(event: EventType) -> EventTables:
    return EventTables(tables(event.descriptor))
