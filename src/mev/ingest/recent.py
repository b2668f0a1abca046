"""Queries of recent events in ClickHouse: newest first, paged, with equality and range filters."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from mev.core.errors import InvalidInputError
from mev.core.paging import InvalidCursorError, decode_cursor, encode_cursor, page_of
from mev.store.clickhouse import ClickHouse
from mev.wire.registry import EVENT_TYPES, EventType
from mev.wire.resume import BadResumeError, decode, encode, fingerprint

MAX_PAGE = 1000
_OPERATORS = {"": "=", "_min": ">=", "_max": "<="}
_INTEGERS = {
    "UInt64": (0, 2**64 - 1),
    "UInt32": (0, 2**32 - 1),
    "Int64": (-(2**63), 2**63 - 1),
    "Int32": (-(2**31), 2**31 - 1),
}
_INTEGER_TEXT = re.compile(r"-?[0-9]{1,20}")
_FLOATS = {"Float64", "Float32"}


class InvalidQueryError(InvalidInputError):
    """A query parameter is invalid."""

    code = "invalid_query"


@dataclass(frozen=True, slots=True)
class RecentPage:
    """Rows as JSON objects, newest first.

    `next_cursor` is the start of the next page; `resume` is the token from which a stream delivers
    the events after those of all pages.
    """

    items: Sequence[bytes]
    next_cursor: str | None
    resume: str

    def body(self) -> bytes:
        """Return the page as a JSON document."""
        tail = orjson.dumps({"next_cursor": self.next_cursor, "resume": self.resume})
        return b'{"items":[' + b",".join(self.items) + b"]," + tail[1:]


@dataclass(frozen=True, slots=True)
class History:
    """Stored events; offsets belong to the log `log`, and a query takes at most `timeout_s`."""

    clickhouse: ClickHouse
    log: str
    timeout_s: float

    def page(
        self, event: EventType, filters: Mapping[str, str], *, limit: int, cursor: str | None
    ) -> RecentPage:
        """Return up to `limit` events after `cursor`; the call blocks.

        `filters` has ``field``, ``field_min`` and ``field_max``. Events stored after the first page
        was read are in no page: the stream delivers them, from the token on.

        :raises InvalidQueryError, InvalidCursorError: naming the parameter.
        """
        conditions, values = _conditions(event, filters)
        if cursor:
            resume, position = _decode_cursor(cursor)
            conditions.append(_after(event, position, values))
        else:
            resume = encode(self.log, self._stored(event), [event.topic])
        conditions.append(self._is_before(resume, values))
        order = ", ".join(f"`{name}` DESC" for name in event.order_by)
        columns = ", ".join(f"`{field.name}`" for field in event.fields)
        rows = self.clickhouse.json_lines(
            f"SELECT {columns}, "  # noqa: S608 - names of ours
            "if(_kafka_log = {log:UInt64}, _kafka_partition, NULL) AS partition, "
            "if(_kafka_log = {log:UInt64}, _kafka_offset, NULL) AS offset "
            f"FROM `{self.clickhouse.database}`.`{event.table}` FINAL "
            f"WHERE {' AND '.join(conditions)} "
            f"ORDER BY {order} LIMIT {limit + 1} SETTINGS max_execution_time = {self.timeout_s:g}",
            values,
        )

        def cursor_of(row: bytes) -> str:
            last = orjson.loads(row)
            return encode_cursor([resume, [last[name] for name in event.order_by]])

        return RecentPage(*page_of(rows, limit, cursor_of), resume)

    def _stored(self, event: EventType) -> dict[tuple[str, int], int]:
        """Return up to where each partition is stored; of what is before it, nothing is missing."""
        rows = self.clickhouse.rows(
            "SELECT partition, max(last_offset) + 1 "  # noqa: S608 - a name of ours
            f"FROM `{self.clickhouse.database}`.`ingest_blocks` "
            "WHERE cluster = {cluster:String} AND topic = {topic:String} GROUP BY partition",
            {"cluster": self.log, "topic": event.topic},
        )
        return {(event.topic, partition): following for partition, following in rows}

    def _is_before(self, resume: str, values: dict[str, object]) -> str:
        """Return the SQL condition that the stream does not deliver a row after `resume`."""
        _, positions = decode(resume, EVENT_TYPES)
        values["log"] = fingerprint(self.log)
        values["partitions"] = [partition for _, partition in positions]
        values["following"] = list(positions.values())
        # 0 for a partition that is not in the token.
        following = "{following:Array(Int64)}[indexOf({partitions:Array(Int32)}, _kafka_partition)]"
        return f"(_kafka_log != {{log:UInt64}} OR _kafka_offset < {following})"


def _conditions(
    event: EventType, filters: Mapping[str, str]
) -> tuple[list[str], dict[str, object]]:
    conditions, values = [], {}
    for index, (parameter, text) in enumerate(filters.items()):
        name, suffix = _field_of(event, parameter)
        kind, repeated = _element_type(event.clickhouse_types[name])
        if repeated and suffix:
            raise InvalidQueryError(
                f"{parameter}: {name} is a list; "
                "only equality with one of its elements can be asked",
                parameter=parameter,
            )
        values[f"p{index}"] = _value(parameter, text, kind)
        bound = f"{{p{index}:{kind}}}"
        conditions.append(
            f"has(`{name}`, {bound})" if repeated else f"`{name}` {_OPERATORS[suffix]} {bound}"
        )
    return conditions, values


def _field_of(event: EventType, parameter: str) -> tuple[str, str]:
    for suffix in _OPERATORS:
        name = parameter.removesuffix(suffix)
        if parameter.endswith(suffix) and name in event.clickhouse_types:
            return name, suffix
    raise InvalidQueryError(
        f"{parameter}: {event.name} has no such field; "
        "filter by a field, or by its name with _min or _max",
        parameter=parameter,
    )


def _element_type(clickhouse_type: str) -> tuple[str, bool]:
    if clickhouse_type.startswith("Array(") and "(" not in clickhouse_type[6:]:
        return clickhouse_type[6:-1], True
    return clickhouse_type, False


def _value(parameter: str, text: str, kind: str) -> object:
    try:
        if kind in _INTEGERS:
            return _integer(text, kind)
        if kind in _FLOATS:
            return _float(text)
        if kind == "Bool":
            return {"true": True, "false": False}[text.lower()]
    except (ValueError, KeyError):
        raise InvalidQueryError(
            f"{parameter}: {text[:80]!r} is not a {kind}", parameter=parameter
        ) from None
    if kind == "String":
        return text
    raise InvalidQueryError(
        f"{parameter}: fields of type {kind} cannot be filtered", parameter=parameter
    )


def _integer(text: str, kind: str) -> int:
    value = int(text) if _INTEGER_TEXT.fullmatch(text) else None
    low, high = _INTEGERS[kind]
    if value is None or not low <= value <= high:
        raise ValueError
    return value


def _float(text: str) -> float:
    if not text.isascii() or "_" in text:
        raise ValueError
    return float(text)


def _after(event: EventType, position: list[object], values: dict[str, object]) -> str:
    try:
        for index, (name, value) in enumerate(zip(event.order_by, position, strict=True)):
            values[f"c{index}"] = _value("cursor", str(value), event.clickhouse_types[name])
    except (ValueError, InvalidQueryError):
        raise InvalidCursorError from None
    bound = ", ".join(
        f"{{c{index}:{event.clickhouse_types[name]}}}" for index, name in enumerate(event.order_by)
    )
    return f"({', '.join(f'`{name}`' for name in event.order_by)}) < ({bound})"


def _decode_cursor(cursor: str) -> tuple[str, list[object]]:
    match decode_cursor(cursor):
        case [str(resume), list(position)]:
            try:
                decode(resume, EVENT_TYPES)
            except BadResumeError:
                raise InvalidCursorError from None
            return resume, position
    raise InvalidCursorError
