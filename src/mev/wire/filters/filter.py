"""Filters: conjunctions of conditions, applied to blocks of events."""

import hashlib
import operator
from collections.abc import Callable, Iterable, Sequence
from itertools import compress, repeat
from typing import TYPE_CHECKING, Any

from mev.wire.filters.columns import Columns, FieldColumn
from mev.wire.filters.errors import shorten
from mev.wire.filters.fields import Path, resolve
from mev.wire.filters.scalars import Condition, Op
from mev.wire.registry import EventType

if TYPE_CHECKING:
    from mev._native import EventFilter

_Test = Callable[[Iterable[Any]], Iterable[object]]
"""Returns for each value whether the condition holds."""
_Compiled = list[tuple[Path, _Test]]

_COMPARE: dict[Op, Callable[[Any, Any], bool]] = {
    Op.EQ: operator.eq,
    Op.NE: operator.ne,
    Op.LT: operator.lt,
    Op.LE: operator.le,
    Op.GT: operator.gt,
    Op.GE: operator.ge,
}


class Filter:
    """A conjunction of conditions; an empty filter matches every event and is falsy.

    Filters with the same conditions are equal, regardless of order and repetition of conditions and
    of the values in their lists. Comparison and hashing take constant time.
    """

    __slots__ = ("_compiled", "_digest", "_native", "conditions")

    def __init__(self, conditions: Iterable[Condition] = ()) -> None:
        by_text = {str(condition): condition for condition in conditions}
        texts = sorted(by_text)
        self.conditions: tuple[Condition, ...] = tuple(by_text[text] for text in texts)
        # Texts contain no line breaks: JSON escapes them.
        self._digest = hashlib.sha256("\n".join(texts).encode()).digest()
        self._compiled: dict[str, _Compiled] = {}
        self._native: dict[str, EventFilter | None] = {}

    def __bool__(self) -> bool:
        return bool(self.conditions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filter) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        return f"Filter({[shorten(text) for text in self.text()]})"

    def text(self) -> list[str]:
        """Return the conditions as text that parses to an equal filter."""
        return [str(condition) for condition in self.conditions]

    def select(self, columns: Columns) -> list[int] | None:
        """Return the indices of the events that match, ascending; None if all match."""
        if self.conditions and (block := columns.native) is not None:
            native_filter = self._native_for(columns.type)
            if native_filter is not None:
                return block.select(native_filter)
        selected: list[int] | None = None
        for path, test in self._for(columns.type):
            selected = _narrow(columns.column(path), test, selected, len(columns))
            if selected is not None and not selected:
                break
        return selected

    def _native_for(self, event: EventType) -> "EventFilter | None":
        if event.name not in self._native:
            from mev.wire.filters import native_filters  # noqa: PLC0415 - needs the native module

            self._native[event.name] = native_filters.compiled(
                event, _paths(self.conditions, event)
            )
        return self._native[event.name]

    def _for(self, event: EventType) -> _Compiled:
        compiled = self._compiled.get(event.name)
        if compiled is None:
            compiled = self._compiled[event.name] = _compile(self.conditions, event)
        return compiled


def _compile(conditions: Iterable[Condition], event: EventType) -> _Compiled:
    paths = _paths(conditions, event)
    # Fields with one value first: they are cheapest, and leave fewer events for the others.
    paths.sort(key=lambda pair: any(step.repeated for step in pair[0].steps))
    return [(path, _test(condition, path)) for path, condition in paths]


def _paths(conditions: Iterable[Condition], event: EventType) -> list[tuple[Path, Condition]]:
    return [(resolve(event, condition.field), condition) for condition in conditions]


def _test(condition: Condition, path: Path) -> _Test:
    if isinstance(condition.value, tuple):
        contains = frozenset(map(path.scalar.stored, condition.value)).__contains__
        if condition.op is Op.IN:
            return lambda values: map(contains, values)
        return lambda values: map(operator.not_, map(contains, values))
    compare, literal = _COMPARE[condition.op], path.scalar.stored(condition.value)
    return lambda values: map(compare, values, repeat(literal))


def _narrow(
    column: FieldColumn, test: _Test, selected: list[int] | None, events: int
) -> list[int] | None:
    """Return the events of `selected` (None: all) for which `test` holds for any value."""
    rows, values = column.rows, column.values
    if selected is not None and isinstance(rows, range):
        return list(compress(selected, test(map(values.__getitem__, selected))))
    found: Sequence[int] | dict[int, None] = list(compress(rows, test(values)))
    if not isinstance(rows, range):
        found = dict.fromkeys(found)
    if selected is not None:
        return [row for row in selected if row in found]
    return None if len(found) == events else list(found)
