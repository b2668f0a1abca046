"""Parsing of filters; every condition is checked against every event type it applies to."""

import re
from collections.abc import Sequence
from typing import Any

import orjson

from mev.wire.filters.errors import BadFilterError, echo
from mev.wire.filters.fields import resolve
from mev.wire.filters.filter import Filter
from mev.wire.filters.scalars import Condition, Op, Scalar
from mev.wire.registry import EventType

MAX_CONDITIONS = 32
MAX_KEYS = 100_000
"""Maximum number of values in all lists of one filter."""

_QUOTED = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_PARTS = re.compile(
    rf'\s*+((?:[^\s"=!<>~\[\]{{}}]|{_QUOTED})++)\s*+(not\s++in\b|[=!<>~]++|\w++|)(.*+)', re.DOTALL
)
_JOINED = re.compile(
    rf"\s*+(?:{_QUOTED}|\[[^\]]*+\]|[^\s,;&|\"\[]++)\s*+(and\b|or\b|&&|\|\||[,;&|])", re.IGNORECASE
)
"""A literal, followed by an operator that would join it with another condition."""
_OPS = ", ".join(Op)


def parse(conditions: object, types: Sequence[EventType]) -> Filter:
    """Return the filter for `conditions`, a list of ``"<field> <op> <literal>"``.

    It is valid for all `types`.

    :raises BadFilterError: naming the invalid condition and a valid alternative.
    """
    if not isinstance(conditions, list | tuple):
        raise BadFilterError(
            'a filter is a list of conditions, for instance ["slot >= 254170887"]', field="filter"
        )
    if len(conditions) > MAX_CONDITIONS:
        raise BadFilterError(
            f"a filter has at most {MAX_CONDITIONS} conditions, not {len(conditions)}",
            field="filter",
        )
    if conditions and not types:
        raise BadFilterError("a filter needs event types", field="filter")
    room = MAX_KEYS
    parsed = list[Condition]()
    for position, text in enumerate(conditions):
        try:
            condition, keys = _condition(text, types, room)
        except BadFilterError as error:
            raise _placed(error, position, text) from None
        room -= keys
        parsed.append(condition)
    return Filter(parsed)


def _condition(text: object, types: Sequence[EventType], room: int) -> tuple[Condition, int]:
    if not isinstance(text, str):
        raise BadFilterError('a condition is a string, for instance "slot >= 254170887"')
    parts = _PARTS.match(text)
    if parts is None:
        raise BadFilterError(
            'a condition is "<field> <op> <literal>", for instance "slot >= 254170887"'
        )
    paths = [resolve(event, parts[1]) for event in types]
    op = _op(parts[2])
    values = _values(op, parts[3], room)
    scalars = dict.fromkeys(path.scalar for path in paths)
    for scalar in scalars:
        _check(scalar, op, values, paths[0].text)
    if all(scalar.floating for scalar in scalars):
        # 1 and 1.0 are one value, and so are 0.0 and -0.0
        values = [float(value) + 0.0 for value in values]
    return Condition(
        paths[0].text, op, tuple(sorted(set(values))) if op.takes_list else values[0]
    ), len(values) * op.takes_list


def _op(text: str) -> Op:
    try:
        return Op(" ".join(text.split()))
    except ValueError:
        found = f"no operator {echo(text)}" if text else "no operator after the field"
        raise BadFilterError(f"{found}; there are {_OPS}", known=list(Op)) from None


def _values(op: Op, text: str, room: int) -> list[Any]:
    try:
        literal = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if (joined := _JOINED.match(text)) is not None:
            raise BadFilterError(_no_word(joined[1])) from None
        raise BadFilterError(
            f"{echo(text.strip())} is no literal, a string in double quotes, a finite number, "
            f"true or false: {error}"
        ) from None
    if not op.takes_list:
        if isinstance(literal, list):
            raise BadFilterError(
                f"{op} takes one value; for a list there are {Op.IN} and {Op.NOT_IN}"
            )
        return [literal]
    if not isinstance(literal, list) or not literal:
        raise BadFilterError(f'{op} takes a list of at least one value, for instance ["orca"]')
    if len(literal) > room:
        raise BadFilterError(f"the lists of a filter have at most {MAX_KEYS} values together")
    return literal


def _no_word(word: str) -> str:
    if word.lower() in {"or", "||"}:
        return (
            f"there is no {word!r}; for several values of one field use `in`, "
            'for instance kind in ["a", "b"]'
        )
    return (
        f"one condition has one comparison, and {word!r} does not join two; "
        "give each as a condition of its own, all of them must hold: "
        "--filter again on the command line, another string in the list in JSON"
    )


def _check(scalar: Scalar, op: Op, values: Sequence[object], field: str) -> None:
    if op.ordering and not scalar.ordered:
        raise BadFilterError(
            f"{field} is of type {scalar.name}, which has no order; compare with == or !=",
            path=field,
            field_type=scalar.name,
        )
    scalar.check(values, field)


def _placed(error: BadFilterError, position: int, text: object) -> BadFilterError:
    shown = f" ({echo(text)})" if isinstance(text, str) else ""
    detail = f"condition {position + 1}{shown}: {error.detail}"
    return BadFilterError(
        detail, retry_after_s=None, field=f"filter[{position}]", position=position, **error.fields
    )
