"""Searching the copies in ClickHouse: newest first, by page."""

import base64
import binascii
from dataclasses import dataclass, fields
from datetime import datetime

import orjson

from mev.audit import tables
from mev.core.errors import InvalidInputError
from mev.store.clickhouse import ClickHouse

MAX_PAGE = 1000
HEAD_COLUMNS = ["log_id", "size", "root_hash", "at_ns", "envelope"]


class InvalidCursorError(InvalidInputError):
    """The cursor is not one of this list."""

    code = "invalid_query"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which records; a text that ends with ``*`` matches what begins with the rest."""

    actor: str | None = None
    action: str | None = None
    object: str | None = None
    outcome: str | None = None
    log_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Rows as JSON objects, newest first, and where the next page starts."""

    items: list[bytes]
    next_cursor: str | None

    def body(self) -> bytes:
        """Return the page as a JSON document."""
        return b'{"items":[' + b",".join(self.items) + b'],"next_cursor":' + orjson.dumps(self.next_cursor) + b"}"


def records_page(clickhouse: ClickHouse, filters: Filters, *, limit: int, cursor: str | None, timeout_s: float) -> Page:
    """Return up to `limit` records after `cursor`. Blocks."""
    order = {"at_ns": "Int64", "log_id": "String", "index": "UInt64"}
    return _page(clickhouse, tables.RECORDS_TABLE, tables.COLUMNS, order, filters, limit, cursor, timeout_s)


def heads_page(clickhouse: ClickHouse, filters: Filters, *, limit: int, cursor: str | None, timeout_s: float) -> Page:
    """Return up to `limit` signed checkpoints after `cursor`. Blocks."""
    order = {"at_ns": "Int64", "log_id": "String", "size": "UInt64"}
    return _page(clickhouse, tables.HEADS_TABLE, HEAD_COLUMNS, order, filters, limit, cursor, timeout_s)


def _page(
    clickhouse: ClickHouse,
    table: str,
    columns: list[str],
    order: dict[str, str],
    filters: Filters,
    limit: int,
    cursor: str | None,
    timeout_s: float,
) -> Page:
    conditions, values = _conditions(filters)
    if cursor:
        names, bound = ", ".join(f"`{name}`" for name in order), ", ".join(f"{{c_{name}:{kind}}}" for name, kind in order.items())
        conditions.append(f"({names}) < ({bound})")
        values |= _position(cursor, order)
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    rows = clickhouse.json_lines(
        f"SELECT {', '.join(f'`{name}`' for name in columns)} FROM `{clickhouse.database}`.`{table}` {where}"  # noqa: S608 - names of ours
        f"ORDER BY {', '.join(f'`{name}` DESC' for name in order)} LIMIT {limit + 1} SETTINGS max_execution_time = {timeout_s:g}",
        values,
    )
    if len(rows) <= limit:
        return Page(rows, None)
    last = orjson.loads(rows[limit - 1])
    return Page(rows[:limit], base64.urlsafe_b64encode(orjson.dumps([last[name] for name in order])).decode())


def _conditions(filters: Filters) -> tuple[list[str], dict[str, object]]:
    conditions: list[str] = []
    values: dict[str, object] = {}
    for field in fields(filters):
        value = getattr(filters, field.name)
        if value is None:
            continue
        if isinstance(value, datetime):
            values[field.name] = int(value.timestamp() * 1_000_000) * 1000
            conditions.append(f"`at_ns` {'>=' if field.name == 'since' else '<'} {{{field.name}:Int64}}")
        else:
            values[field.name] = value.removesuffix("*")
            test = "startsWith(`{0}`, {{{0}:String}})" if value.endswith("*") else "`{0}` = {{{0}:String}}"
            conditions.append(test.format(field.name))
    return conditions, values


def _position(cursor: str, order: dict[str, str]) -> dict[str, object]:
    try:
        position = orjson.loads(base64.urlsafe_b64decode(cursor.encode()))
        pairs = list(zip(order.items(), position, strict=True))
        return {f"c_{name}": str(value) if kind == "String" else int(value) for (name, kind), value in pairs}
    except (binascii.Error, ValueError, TypeError):
        raise InvalidCursorError("cursor: not one of this list; start again without it", parameter="cursor") from None
