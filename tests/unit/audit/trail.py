"""Shared helpers of the audit trail tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mev.audit import tables
from mev.audit.journal import Journal
from mev.audit.trusted import read_trusted, trusted_file
from mev.audit.verify import LogVerdict, verify_folder
from mev.crypto.keys import SigningKey
from mev.store.clickhouse import Address, ClickHouse, ClickHouseUnavailableError
from mev.wire.codec import split_delimited
from mev.wire.pb.audit_pb2 import AuditRecord

KEY = SigningKey("audit-1", b"\x05" * 32)


def journal(folder: Path, *, segment_bytes: int = 1 << 20, role: str = "api") -> Journal:
    """Open the journal in `folder`."""
    return Journal(folder, role, KEY, segment_bytes=segment_bytes)


def records(count: int, start: int = 0) -> list[AuditRecord]:
    """Return `count` records that differ, at times `start` and after."""
    return [
        AuditRecord(
            at_ns=n, actor="alice", action="control.level", object=f"agent-{n}", outcome="ok"
        )
        for n in range(start, start + count)
    ]


UNSIGNED_S = 60.0


def verdict(folder: Path, *, at_ns: int = 0) -> LogVerdict:
    """Verify the one log in `folder` at a time; its records are of 1970."""
    (found,) = verify_folder(
        folder, read_trusted(trusted_file(folder)), at_ns=at_ns, unsigned_s=UNSIGNED_S
    )
    return found


class FakeClickHouse(ClickHouse):
    """The two tables in memory; it does not answer while `away`."""

    def __init__(self) -> None:
        super().__init__(Address(database="mev"))
        self.away = False
        self.rows_by_table: dict[str, list[dict[str, Any]]] = {
            tables.RECORDS_TABLE: [],
            tables.HEADS_TABLE: [],
        }
        self.blocks = 0
        self.refused = 0
        """Requests while it was away."""

    def command(self, sql: str) -> None:
        self._answer()

    def rows(
        self, sql: str, parameters: Mapping[str, Any] | None = None
    ) -> Sequence[Sequence[Any]]:
        self._answer()
        name, column = (
            (tables.HEADS_TABLE, "size")
            if tables.HEADS_TABLE in sql
            else (tables.RECORDS_TABLE, "index")
        )
        found = [
            row[column]
            for row in self.rows_by_table[name]
            if row["log_id"] == (parameters or {})["log_id"]
        ]
        return [[max(found, default=-1 if column == "index" else 0) + (column == "index")]]

    def insert_protobuf(
        self,
        table: str,
        columns: Sequence[str],
        block: bytes,
        *,
        schema: str,
        message: str,
        token: str,
    ) -> None:
        self._answer()
        self.blocks += 1
        parsed = [AuditRecord.FromString(body) for body in split_delimited(block)]
        self.rows_by_table[table] += [
            {name: getattr(record, name) for name in columns} for record in parsed
        ]

    def insert_row(self, table: str, row: Mapping[str, Any]) -> None:
        self._answer()
        self.rows_by_table[table].append(dict(row))

    def _answer(self) -> None:
        if self.away:
            self.refused += 1
            raise ClickHouseUnavailableError("away")
