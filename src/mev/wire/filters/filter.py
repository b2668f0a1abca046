"""Conditions that must all hold, and the events of a block for which they do."""

import hashlib
import operator
from collections.abc import Callable, Iterable, Sequence
from itertools import compress, repeat
from typing import Any

from mev.wire.filters.columns import Column, Columns
from mev.wire.filters.conditions import Condition, Op
from mev.wire.filters.errors import shorten
from mev.wire.filters.fields import Path, resolve
from mev.wire.registry import EventType

_Test = Callable[[Iterable[Any]], Iterable[object]]
"""Says of each value whether the condition holds."""
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
    """Conditions that must all hold; none hold always, and make the filter falsy.

    Filters with the same conditions are equal, whatever the order and repetitions of conditions and of the values in their lists. Comparing
    and hashing take the same time for any number of values.
    """

    __slots__ = ("_compiled", "_digest", "conditions")

    def __init__(self, conditions: Iterable[Condition] = ()) -> None:
        by_text = {str(condition): condition for condition in conditions}
        texts = sorted(by_text)
        self.conditions: tuple[Condition, ...] = tuple(by_text[text] for text in texts)
        self._digest = hashlib.sha256("\n".join(texts).encode()).digest()  # no text has a line break: JSON escapes it
        self._compiled: dict[str, _Compiled] = {}

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
        """Return which events of a block match, ascending; None when all do."""
        selected: list[int] | None = None
        for path, test in self._for(columns.type):
            selected = _narrow(columns.column(path), test, selected, len(columns))
            if selected is not None and not selected:
                break
        return selected

    def _for(self, event: EventType) -> _Compiled:
        compiled = self._compiled.get(event.name)
        if compiled is None:
            compiled = self._compiled[event.name] = _compile(self.conditions, event)
        return compiled


def _compile(conditions: Iterable[Condition], event: EventType) -> _Compiled:
    paths = [(resolve(event, condition.field), condition) for condition in conditions]
    # Fields with one value first: they cost least, and leave fewer events to the others.
    paths.sort(key=lambda pair: any(step.repeated for step in pair[0].steps))
    return [(path, _test(condition, path)) for path, condition in paths]


def _test(condition: Condition, path: Path) -> _Test:
    if isinstance(condition.value, tuple):
        contains = frozenset(map(path.scalar.stored, condition.value)).__contains__
        if condition.op is Op.IN:
            return lambda values: map(contains, values)
        return lambda values: map(operator.not_, map(contains, values))
    compare, literal = _COMPARE[condition.op], path.scalar.stored(condition.value)
    return lambda values: map(compare, values, repeat(literal))


def _narrow(column: Column, test: _Test, selected: list[int] | None, events: int) -> list[int] | None:
    """Return those of `selected` (None: all events) for which `test` holds of any value."""
    rows, values = column.rows, column.values
    if selected is not None and isinstance(rows, range):
        return list(compress(selected, test(map(values.__getitem__, selected))))
    found: Sequence[int] | dict[int, None] = list(compress(rows, test(values)))
    if not isinstance(rows, range):
        found = dict.fromkeys(found)
    if selected is not None:
        return [row for row in selected if row in found]
    return None if len(found) == events else list(found)
