"""ClickHouse tables with copies of the trail, for queries and comparison."""

import base64
from collections.abc import Sequence

from mev.store.clickhouse import ClickHouse
from mev.wire.pb.audit_pb2 import AuditRecord

RECORDS_TABLE = "audit_log"
HEADS_TABLE = "audit_checkpoints"
COLUMNS = [field.name for field in AuditRecord.DESCRIPTOR.fields]
_TYPES = {
    AuditRecord.DESCRIPTOR.fields[0].TYPE_UINT64: "uint64",
    AuditRecord.DESCRIPTOR.fields[0].TYPE_SINT64: "sint64",
}
_SCHEMA = 'syntax = "proto3";\nmessage AuditRecord {{\n{fields}\n}}\n'.format(
    fields="\n".join(
        f"  {_TYPES.get(field.type, 'string')} {field.name} = {field.number};"
        for field in AuditRecord.DESCRIPTOR.fields
    )
)
_DDL = """\
CREATE TABLE IF NOT EXISTS `{database}`.`audit_log` (
    `index` UInt64 COMMENT 'Number in its log.',
    `log_id` String COMMENT 'Log: one for each process that writes.',
    `at_ns` Int64 COMMENT 'When, in nanoseconds since the Unix epoch.',
    `actor` String COMMENT 'User, API key, agent or "system".',
    `session` String COMMENT 'Session or key it acted through.',
    `remote` String COMMENT 'Address it came from.',
    `action` LowCardinality(String) COMMENT 'What was done.',
    `object` String COMMENT 'What it was done to.',
    `outcome` LowCardinality(String) COMMENT 'ok, or the code of the error.',
    `details_json` String COMMENT 'JSON object without secrets.',
    `correlation_id` String COMMENT 'Command or request it belongs to.'
)
ENGINE = MergeTree ORDER BY (log_id, index)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'Copy of the audit trail; the journal is the original.'
---
CREATE TABLE IF NOT EXISTS `{database}`.`audit_checkpoints` (
    `log_id` String COMMENT 'Log.',
    `size` UInt64 COMMENT 'Records that are signed.',
    `root_hash` String COMMENT 'Root of the Merkle tree over them, hexadecimal.',
    `at_ns` Int64 COMMENT 'When it was signed, in nanoseconds since the Unix epoch.',
    `envelope` String COMMENT 'The signed checkpoint, base64.'
)
ENGINE = ReplacingMergeTree ORDER BY (log_id, size)
COMMENT 'Signed heads of the audit trail.'"""


def create_tables(clickhouse: ClickHouse) -> None:
    """Create missing tables."""
    clickhouse.command(f"CREATE DATABASE IF NOT EXISTS `{clickhouse.database}`")
    for statement in _DDL.format(database=clickhouse.database).split("\n---\n"):
        clickhouse.command(statement)


def insert_records(
    clickhouse: ClickHouse, log_id: str, first: int, records: Sequence[bytes]
) -> None:
    """Insert `records`, the first with index `first`; a repeat adds nothing."""
    block = b"".join(_length(record) + record for record in records)
    token = f"{log_id}-{first}-{len(records)}"
    clickhouse.insert_protobuf(
        RECORDS_TABLE, COLUMNS, block, schema=_SCHEMA, message="AuditRecord", token=token
    )


def next_index(clickhouse: ClickHouse, log_id: str) -> int:
    """Return the index after the newest copied record of the log."""
    return _one(
        clickhouse,
        "SELECT if(count() = 0, 0, max(`index`) + 1) "  # noqa: S608
        f"FROM `{clickhouse.database}`.`{RECORDS_TABLE}`",
        log_id,
    )


def newest_size(clickhouse: ClickHouse, log_id: str) -> int:
    """Return the size of the newest copied checkpoint of the log."""
    return _one(
        clickhouse,
        f"SELECT max(`size`) FROM `{clickhouse.database}`.`{HEADS_TABLE}`",  # noqa: S608
        log_id,
    )


def newest_envelope(
    clickhouse: ClickHouse, log_id: str, *, answer_s: float
) -> tuple[int, list[bytes]]:
    """Return size and envelope of the newest copied checkpoint, or 0 and an empty list."""
    sql = (
        f"SELECT size, envelope FROM `{clickhouse.database}`.`{HEADS_TABLE}` "  # noqa: S608
        "WHERE log_id = {log_id:String} ORDER BY size DESC LIMIT 1"
    )
    rows = clickhouse.rows_within(answer_s, sql, {"log_id": log_id})
    return (int(rows[0][0]), [base64.b64decode(rows[0][1])]) if rows else (0, [])


def newest_envelopes(
    clickhouse: ClickHouse, role: str, *, limit: int, answer_s: float
) -> list[bytes]:
    """Return the newest copied checkpoint of each of the `limit` newest logs of a role."""
    sql = (
        "SELECT argMax(envelope, size) "  # noqa: S608
        f"FROM `{clickhouse.database}`.`{HEADS_TABLE}` "
        "WHERE startsWith(log_id, {prefix:String}) GROUP BY log_id "
        f"ORDER BY max(at_ns) DESC LIMIT {limit}"
    )
    rows = clickhouse.rows_within(answer_s, sql, {"prefix": f"{role}-"})
    return [base64.b64decode(row[0]) for row in rows]


def newest_records(
    clickhouse: ClickHouse, log_id: str, first: int, *, limit: int, answer_s: float
) -> list[AuditRecord]:
    """Return up to `limit` of the newest copied records of the log, from record `first`."""
    columns = ", ".join(f"`{name}`" for name in COLUMNS)
    sql = (
        f"SELECT {columns} FROM `{clickhouse.database}`.`{RECORDS_TABLE}` "  # noqa: S608
        "WHERE log_id = {log_id:String} AND `index` >= {first:UInt64} "
        f"ORDER BY `index` DESC LIMIT {limit}"
    )
    rows = clickhouse.rows_within(answer_s, sql, {"log_id": log_id, "first": first})
    return [AuditRecord(**dict(zip(COLUMNS, row, strict=True))) for row in rows]


def _one(clickhouse: ClickHouse, sql: str, log_id: str) -> int:
    return int(clickhouse.rows(f"{sql} WHERE log_id = {{log_id:String}}", {"log_id": log_id})[0][0])


def _length(record: bytes) -> bytes:
    size, encoded = len(record), bytearray()
    while size > 127:
        encoded.append(size & 127 | 128)
        size >>= 7
    return bytes([*encoded, size])
