"""Queries over the copies in ClickHouse: newest first, with pages."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime

import orjson

from mev.audit import tables
from mev.core.clock import to_ns
from mev.core.paging import InvalidCursorError, decode_cursor, encode_cursor, page_of
from mev.store.clickhouse import ClickHouse

MAX_PAGE = 1000
HEAD_COLUMNS = ["log_id", "size", "root_hash", "at_ns", "envelope"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Filters of records; a trailing ``*`` matches a prefix."""

    actor: str | None = None
    action: str | None = None
    object: str | None = None
    outcome: str | None = None
    log_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Rows as JSON objects, newest first, and the cursor of the next page."""

    items: Sequence[bytes]
    next_cursor: str | None

    def body(self) -> bytes:
        """Return the page as a JSON document."""
        return (
            b'{"items":['
            + b",".join(self.items)
            + b'],"next_cursor":'
            + orjson.dumps(self.next_cursor)
            + b"}"
        )


def records_page(
    clickhouse: ClickHouse, filters: Filters, *, limit: int, cursor: str | None, timeout_s: float
) -> AuditPage:
    """Return up to `limit` records after `cursor`; blocks."""
    order = {"at_ns": "Int64", "log_id": "String", "index": "UInt64"}
    return _page(
        clickhouse, tables.RECORDS_TABLE, tables.COLUMNS, order, filters, limit, cursor, timeout_s
    )


def heads_page(
    clickhouse: ClickHouse, filters: Filters, *, limit: int, cursor: str | None, timeout_s: float
) -> AuditPage:
    """Return up to `limit` signed checkpoints after `cursor`; blocks."""
    order = {"at_ns": "Int64", "log_id": "String", "size": "UInt64"}
    return _page(
        clickhouse, tables.HEADS_TABLE, HEAD_COLUMNS, order, filters, limit, cursor, timeout_s
    )


def _page(
    clickhouse: ClickHouse,
    table: str,
    columns: list[str],
    order: dict[str, str],
    filters: Filters,
    limit: int,
    cursor: str | None,
    timeout_s: float,
) -> AuditPage:
    conditions, values = _conditions(filters)
    if cursor:
        names, bound = (
            ", ".join(f"`{name}`" for name in order),
            ", ".join(f"{{c_{name}:{kind}}}" for name, kind in order.items()),
        )
        conditions.append(f"({names}) < ({bound})")
        values |= _position(cursor, order)
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    rows = clickhouse.json_lines(
        f"SELECT {', '.join(f'`{name}`' for name in columns)} "  # noqa: S608 - own names
        f"FROM `{clickhouse.database}`.`{table}` {where}"
        f"ORDER BY {', '.join(f'`{name}` DESC' for name in order)} LIMIT {limit + 1} "
        f"SETTINGS max_execution_time = {timeout_s:g}",
        values,
    )

    def cursor_of(row: bytes) -> str:
        last = orjson.loads(row)
        return encode_cursor([last[name] for name in order])

    return AuditPage(*page_of(rows, limit, cursor_of))


def _conditions(filters: Filters) -> tuple[list[str], dict[str, object]]:
    conditions: list[str] = []
    values: dict[str, object] = {}
    for field in fields(filters):
        value = getattr(filters, field.name)
        if value is None:
            continue
        if isinstance(value, datetime):
            values[field.name] = to_ns(value)
            conditions.append(
                f"`at_ns` {'>=' if field.name == 'since' else '<'} {{{field.name}:Int64}}"
            )
        else:
            values[field.name] = value.removesuffix("*")
            test = (
                "startsWith(`{0}`, {{{0}:String}})"
                if value.endswith("*")
                else "`{0}` = {{{0}:String}}"
            )
            conditions.append(test.format(field.name))
    return conditions, values


def _position(cursor: str, order: dict[str, str]) -> dict[str, object]:
    try:
        pairs = list(zip(order.items(), decode_cursor(cursor), strict=True))
        return {
            f"c_{name}": str(value) if kind == "String" else int(str(value))
            for (name, kind), value in pairs
        }
    except ValueError:
        raise InvalidCursorError from None
