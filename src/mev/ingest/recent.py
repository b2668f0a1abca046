"""Recent events out of ClickHouse: newest first, by page, with equality and range filters."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from mev.core.errors import InvalidInputError
from mev.store.clickhouse import ClickHouse
from mev.wire.registry import EventType

MAX_PAGE = 1000
_OPERATORS = {"": "=", "_min": ">=", "_max": "<="}
_INTEGERS = {"UInt64", "UInt32", "Int64", "Int32"}
_FLOATS = {"Float64", "Float32"}


class InvalidQueryError(InvalidInputError):
    """A query parameter is wrong."""

    code = "invalid_query"


@dataclass(frozen=True, slots=True)
class Page:
    """Rows as JSON objects, newest first, and where the next page starts."""

    items: list[bytes]
    next_cursor: str | None

    def body(self) -> bytes:
        """Return the page as a JSON document."""
        return b'{"items":[' + b",".join(self.items) + b'],"next_cursor":' + orjson.dumps(self.next_cursor) + b"}"


def read_page(
    clickhouse: ClickHouse, event: EventType, filters: Mapping[str, str], *, limit: int, cursor: str | None, timeout_s: float
) -> Page:
    """Return up to `limit` events after `cursor`; `filters` are ``field``, ``field_min`` and ``field_max``. Blocks.

    :raises InvalidQueryError: naming the parameter.
    """
    conditions, values = _conditions(event, filters)
    if cursor:
        conditions.append(_after(event, cursor, values))
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    order = ", ".join(f"`{name}` DESC" for name in event.order_by)
    columns = ", ".join(f"`{field.name}`" for field in event.fields)
    rows = clickhouse.json_lines(
        f"SELECT {columns} FROM `{clickhouse.database}`.`{event.table}` FINAL {where}"  # noqa: S608 - names of ours; values are bound
        f"ORDER BY {order} LIMIT {limit + 1} SETTINGS max_execution_time = {timeout_s:g}",
        values,
    )
    if len(rows) <= limit:
        return Page(rows, None)
    last = orjson.loads(rows[limit - 1])
    return Page(rows[:limit], _encode_cursor([last[name] for name in event.order_by]))


def _conditions(event: EventType, filters: Mapping[str, str]) -> tuple[list[str], dict[str, object]]:
    conditions, values = [], {}
    for index, (parameter, text) in enumerate(filters.items()):
        name, suffix = _field_of(event, parameter)
        kind, repeated = _element_type(event.clickhouse_types[name])
        if repeated and suffix:
            raise InvalidQueryError(
                f"{parameter}: {name} is a list; only equality with one of its elements can be asked", parameter=parameter
            )
        values[f"p{index}"] = _value(parameter, text, kind)
        bound = f"{{p{index}:{kind}}}"
        conditions.append(f"has(`{name}`, {bound})" if repeated else f"`{name}` {_OPERATORS[suffix]} {bound}")
    return conditions, values


def _field_of(event: EventType, parameter: str) -> tuple[str, str]:
    for suffix in _OPERATORS:
        name = parameter.removesuffix(suffix)
        if parameter.endswith(suffix) and name in event.clickhouse_types:
            return name, suffix
    raise InvalidQueryError(
        f"{parameter}: {event.name} has no such field; filter by a field, or by its name with _min or _max", parameter=parameter
    )


def _element_type(clickhouse_type: str) -> tuple[str, bool]:
    if clickhouse_type.startswith("Array(") and "(" not in clickhouse_type[6:]:
        return clickhouse_type[6:-1], True
    return clickhouse_type, False


def _value(parameter: str, text: str, kind: str) -> object:
    try:
        if kind in _INTEGERS:
            return int(text)
        if kind in _FLOATS:
            return float(text)
        if kind == "Bool":
            return {"true": True, "false": False}[text.lower()]
    except (ValueError, KeyError):
        raise InvalidQueryError(f"{parameter}: {text!r} is not a {kind}", parameter=parameter) from None
    if kind == "String":
        return text
    raise InvalidQueryError(f"{parameter}: fields of type {kind} cannot be filtered", parameter=parameter)


def _after(event: EventType, cursor: str, values: dict[str, object]) -> str:
    try:
        position = orjson.loads(base64.urlsafe_b64decode(cursor.encode()))
        pairs = list(zip(event.order_by, position, strict=True))
        for index, (name, value) in enumerate(pairs):
            values[f"c{index}"] = _value("cursor", str(value), event.clickhouse_types[name])
    except (binascii.Error, ValueError, TypeError):
        raise InvalidQueryError("cursor: not one of this list; start again without it", parameter="cursor") from None
    bound = ", ".join(f"{{c{index}:{event.clickhouse_types[name]}}}" for index, name in enumerate(event.order_by))
    return f"({', '.join(f'`{name}`' for name in event.order_by)}) < ({bound})"


def _encode_cursor(position: list[object]) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(position)).decode()
