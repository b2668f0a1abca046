"""Execution of one HTTP statement in the engine, with settings, parameters and inserted data."""

import json
import re
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chdb

_INSERT = re.compile(
    rb"\s*INSERT\s+INTO\s+(?P<into>.+?)\s+FORMAT\s+(?P<format>\w+)[ \t\f]*(?:\r?\n|$)",
    re.IGNORECASE | re.DOTALL,
)
_FORMAT = re.compile(rb"\bFORMAT\s+(\w+)\s*;?\s*$", re.IGNORECASE)
_SETTING = re.compile(r"[A-Za-z_]\w*")
_CODE = re.compile(r"Code: (\d+)\. DB::Exception: ")
_UNKNOWN_SETTING = 115


class EngineError(Exception):
    """An error raised by the engine, with its text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        found = _CODE.search(text)
        self.code = int(found[1]) if found else 1002
        self.text = text[found.start() :] if found else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Result of a statement; `format` is None for a statement without a result set."""

    body: bytes
    format: str | None
    summary: str


class Engine:
    """Executor of one statement at a time on the data in `folder`, each in its own session."""

    def __init__(self, folder: Path) -> None:
        self._path = str(folder)
        self._lock = threading.Lock()
        # The engine lives as long as any connection.
        self._keeper = chdb.connect(self._path)  # type: ignore[no-untyped-call]
        sql = (
            "SELECT version(), timezone(), value FROM system.settings WHERE name ="
            " 'enable_http_compression'"
        )
        self.version, self.timezone, self.compresses = (
            self._keeper.query(sql, "TSV").bytes().decode().split()
        )

    def run(
        self,
        statement: bytes,
        settings: Mapping[str, str],
        parameters: Mapping[str, str],
        database: str,
    ) -> Result:
        """Run `statement`; what follows FORMAT in an INSERT is its data.

        :raises EngineError: when the engine refuses it.
        """
        started = time.perf_counter()
        with self._lock:
            session = chdb.connect(self._path)  # type: ignore[no-untyped-call]
            try:
                _prepare(session, settings, database)
                result, given = _execute(session, statement, parameters)
                body = result.bytes() or b""
                numbers = {
                    "read_rows": result.rows_read(),
                    "read_bytes": result.bytes_read(),
                    "written_rows": result.rows_written(),
                }
            except RuntimeError as error:
                raise EngineError(str(error)) from None
            finally:
                session.close()
        if given is None and body:
            given, body = "TabSeparated", body.partition(b"\n")[2]
        elapsed = {"elapsed_ns": int((time.perf_counter() - started) * 1e9)}
        return Result(
            body=body,
            format=given,
            summary=json.dumps(
                {name: str(value) for name, value in {**numbers, **elapsed}.items()}
            ),
        )

    def close(self) -> None:
        """Close the data in order."""
        with self._lock:
            self._keeper.close()


def _prepare(session: Any, settings: Mapping[str, str], database: str) -> None:
    if database:
        session.query(f"USE `{database}`", "TSV")
    for name, value in settings.items():
        if not _SETTING.fullmatch(name):
            raise EngineError(
                f"Code: {_UNKNOWN_SETTING}. DB::Exception: Unknown setting {_literal(name)}."
                " (UNKNOWN_SETTING)"
            )
        session.query(f"SET {name} = {_literal(value)}", "TSV")


def _execute(
    session: Any, statement: bytes, parameters: Mapping[str, str]
) -> tuple[Any, str | None]:
    insert = _INSERT.match(statement)
    if insert and insert["format"].upper() != b"VALUES":
        return _insert(
            session, insert["into"].decode(), insert["format"].decode(), statement[insert.end() :]
        ), None
    chosen = _FORMAT.search(statement)
    # Column names tell an empty result from a statement without a result set.
    result = session.query(statement.decode(), "TabSeparatedWithNames", params=dict(parameters))
    return result, chosen[1].decode() if chosen else None


def _insert(session: Any, into: str, name: str, data: bytes) -> Any:
    with tempfile.NamedTemporaryFile(suffix=".data") as file:
        file.write(data)
        file.flush()
        return session.query(
            f"INSERT INTO {into} FROM INFILE {_literal(file.name)} FORMAT {name}", "TSV"
        )


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
