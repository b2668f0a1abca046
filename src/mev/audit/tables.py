"""The tables in ClickHouse that hold copies of the trail: for searching, and to compare with."""

from collections.abc import Sequence

from mev.store.clickhouse import ClickHouse
from mev.wire.pb.audit_pb2 import AuditRecord

RECORDS_TABLE = "audit_log"
HEADS_TABLE = "audit_checkpoints"
COLUMNS = [field.name for field in AuditRecord.DESCRIPTOR.fields]
_TYPES = {AuditRecord.DESCRIPTOR.fields[0].TYPE_UINT64: "uint64", AuditRecord.DESCRIPTOR.fields[0].TYPE_SINT64: "sint64"}
_SCHEMA = 'syntax = "proto3";\nmessage AuditRecord {{\n{fields}\n}}\n'.format(
    fields="\n".join(f"  {_TYPES.get(field.type, 'string')} {field.name} = {field.number};" for field in AuditRecord.DESCRIPTOR.fields)
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
    """Create the tables that do not exist."""
    clickhouse.command(f"CREATE DATABASE IF NOT EXISTS `{clickhouse.database}`")
    for statement in _DDL.format(database=clickhouse.database).split("\n---\n"):
        clickhouse.command(statement)


def insert_records(clickhouse: ClickHouse, log_id: str, first: int, records: Sequence[bytes]) -> None:
    """Insert `records`, the first of which has index `first`; a repeat adds nothing."""
    block = b"".join(_length(record) + record for record in records)
    token = f"{log_id}-{first}-{len(records)}"
    clickhouse.insert_protobuf(RECORDS_TABLE, COLUMNS, block, schema=_SCHEMA, message="AuditRecord", token=token)


def next_index(clickhouse: ClickHouse, log_id: str) -> int:
    """Return the index that follows the newest copied record of the log."""
    return _one(clickhouse, f"SELECT if(count() = 0, 0, max(`index`) + 1) FROM `{clickhouse.database}`.`{RECORDS_TABLE}`", log_id)  # noqa: S608


def newest_size(clickhouse: ClickHouse, log_id: str) -> int:
    """Return the size of the newest copied checkpoint of the log."""
    return _one(clickhouse, f"SELECT max(`size`) FROM `{clickhouse.database}`.`{HEADS_TABLE}`", log_id)  # noqa: S608


def _one(clickhouse: ClickHouse, sql: str, log_id: str) -> int:
    return int(clickhouse.rows(f"{sql} WHERE log_id = {{log_id:String}}", {"log_id": log_id})[0][0])


def _length(record: bytes) -> bytes:
    size, encoded = len(record), bytearray()
    while size > 127:
        encoded.append(size & 127 | 128)
        size >>= 7
    return bytes([*encoded, size])
