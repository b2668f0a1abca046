"""ClickHouse client: a server over HTTP, or the engine embedded in this process."""

import math
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, ProgrammingError
from clickhouse_connect.driver.httpclient import HttpClient
from urllib3 import Timeout
from urllib3.exceptions import HTTPError

from mev.core.errors import UnavailableError

# Error codes for data that does not match the schema, including all of Protobuf's.
_DATA_ERRORS = {6, 27, 32, 33, 117, 131, *range(432, 448)}
# Temporary server errors: too many queries, time-outs, network, shutdown, table not open yet.
_PASSING_ERRORS = {159, 202, 209, 210, 236, 279, 319, 999}
_AUTHENTICATION_FAILED = 516
_COPY_BYTES = 1 << 20
_INLINE_SCHEMAS = "format_schema_source"  # added together with inline schemas


class ClickHouseUnavailableError(UnavailableError):
    """ClickHouse does not answer, or refuses a request."""

    code = "clickhouse_unavailable"


class ClickHouseAwayError(ClickHouseUnavailableError):
    """ClickHouse does not answer now; a retry may succeed."""


class ClickHouseTooOldError(UnavailableError):
    """The ClickHouse version is too old."""

    code = "clickhouse_too_old"


class UnreadableBlockError(Exception):
    """A block holds a record that is not a message of its schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Address of ClickHouse: `path` for the embedded engine, else a server.

    `timeout_s` limits a server's connections and pings; the other time limits apply to queries and
    inserts. The embedded engine has no time limits.
    """

    database: str
    path: Path | None = None
    host: str = ""
    port: int = 8123
    user: str = "default"
    password: str = ""
    secure: bool = False
    timeout_s: float = 10.0
    query_timeout_s: float = 20.0
    insert_timeout_s: float = 60.0

    @property
    def place(self) -> str:
        """The address for display."""
        return str(self.path) if self.path else f"{self.host}:{self.port}"


class ClickHouse:
    """ClickHouse client with one connection per thread.

    All methods block; the embedded engine releases the interpreter lock.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._local = threading.local()
        self._clients: list[Client] = []

    @property
    def database(self) -> str:
        """The database of all tables."""
        return self._address.database

    @property
    def place(self) -> str:
        """The address for display."""
        return self._address.place

    def ping(self) -> None:
        """Run a trivial query.

        :raises ClickHouseUnavailableError: if it fails.
        """
        try:
            self._client(self._address.timeout_s).query("SELECT 1")
        except (ClickHouseError, OSError) as error:
            raise self._unavailable(error) from None

    def check_version(self) -> None:
        """Check that the version supports inserts with inline Protobuf schemas.

        :raises ClickHouseTooOldError: if it does not.
        """
        if self.rows(
            "SELECT 1 FROM system.settings WHERE name = {name:String}", {"name": _INLINE_SCHEMAS}
        ):
            return
        ((version,),) = self.rows("SELECT version()")
        raise ClickHouseTooOldError(
            f"ClickHouse at {self.place} is version {version}, which does not know the setting "
            f"{_INLINE_SCHEMAS}: events are inserted "
            "with inline Protobuf schemas; use a newer server, or none (unset CLICKHOUSE_HOST) "
            "for the embedded engine"
        )

    def command(self, sql: str) -> None:
        """Run a statement without a result."""
        try:
            self._client(self._address.insert_timeout_s).command(sql)
        except (ClickHouseError, OSError) as error:
            raise self._unavailable(error) from None

    def command_in_time(self, sql: str) -> None:
        """Run a statement without a result, within the time limit of a health check."""
        try:
            self._client(self._address.timeout_s).command(sql)
        except (ClickHouseError, OSError) as error:
            raise self._unavailable(error) from None

    def rows(
        self, sql: str, parameters: Mapping[str, Any] | None = None
    ) -> Sequence[Sequence[Any]]:
        """Return the rows of a query; parameters are bound as ``{name:Type}``."""
        return self.rows_within(self._address.query_timeout_s, sql, parameters)

    def rows_within(
        self,
        answer_s: float,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
    ) -> Sequence[Sequence[Any]]:
        """Return the rows of a query, within `answer_s` on a server."""
        try:
            return (
                self._client(answer_s)
                .query(sql, parameters=dict(parameters or {}), settings=dict(settings or {}))
                .result_rows
            )
        except (ClickHouseError, OSError) as error:
            raise self._unavailable(error) from None

    def json_lines(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[bytes]:
        """Return each row of a query as a JSON object, with 64-bit integers as numbers."""
        settings = {
            "output_format_json_quote_64bit_integers": 0,
            "output_format_json_quote_denormals": 0,
        }
        try:
            client = self._client(self._address.query_timeout_s)
            answer = client.raw_query(
                sql, parameters=dict(parameters or {}), settings=settings, fmt="JSONEachRow"
            )
        except (ClickHouseError, OSError) as error:
            raise self._unavailable(error) from None
        return bytes(answer).splitlines()

    def write_file(
        self,
        path: Path,
        sql: str,
        parameters: Mapping[str, Any],
        *,
        fmt: str,
        settings: Mapping[str, Any],
        answer_s: float,
    ) -> None:
        """Write the rows of a query to the new file `path` in format `fmt`.

        After an error the file may be incomplete. Rows are not held in memory: the embedded engine
        writes the file, a server streams it within `answer_s`.
        """
        try:
            client = self._client(answer_s)
            if self._address.path:
                quoted = str(path).replace("\\", "\\\\").replace("'", "\\'")
                client.raw_query(
                    f"{sql} INTO OUTFILE '{quoted}'",
                    parameters=dict(parameters),
                    settings=dict(settings),
                    fmt=fmt,
                )
                return
            # Once a server sends rows, it can only append an error to them; so it must finish
            # first.
            whole = {**settings, "wait_end_of_query": 1}
            with (
                client.raw_stream(
                    sql, parameters=dict(parameters), settings=whole, fmt=fmt
                ) as answer,
                path.open("xb") as file,
            ):
                shutil.copyfileobj(answer, file, _COPY_BYTES)
        except (ClickHouseError, HTTPError, OSError) as error:
            raise self._unavailable(error) from None

    def kill(self, comment: str) -> None:
        """Cancel the queries whose setting ``log_comment`` is `comment`, from any thread."""
        try:
            sql = "KILL QUERY WHERE Settings['log_comment'] = {comment:String} ASYNC"
            self._client(self._address.timeout_s).command(sql, parameters={"comment": comment})
        except (ClickHouseError, OSError) as error:
            raise self._unavailable(error) from None

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
        """Insert `block`, length-delimited messages, into `table`.

        A repeat with the same `token` is ignored.

        :raises UnreadableBlockError: if a record is not a `message` of `schema`; nothing is stored.
        :raises ClickHouseUnavailableError: if the insert failed; it can be retried.
        """
        settings = {
            "format_schema_source": "string",
            "format_schema": schema,
            "format_schema_message_name": message,
            "insert_deduplication_token": token,
            "async_insert": 0,
        }
        try:
            client = self._client(self._address.insert_timeout_s)
            client.raw_insert(
                f"`{self.database}`.`{table}`",
                column_names=columns,
                insert_block=block,
                fmt="Protobuf",
                settings=settings,
            )
        except (ClickHouseError, OSError) as error:
            if getattr(error, "code", None) in _DATA_ERRORS:
                raise UnreadableBlockError(_said(error)) from None
            raise self._unavailable(error) from None

    def insert_row(self, table: str, row: Mapping[str, Any]) -> None:
        """Insert one row."""
        try:
            client = self._client(self._address.insert_timeout_s)
            client.insert(
                table, [list(row.values())], column_names=list(row), database=self.database
            )
        except (ClickHouseError, OSError) as error:
            raise self._unavailable(error) from None

    def release(self) -> None:
        """Close this thread's connection; the next call opens a new one."""
        if client := self._local.__dict__.pop("client", None):
            self._clients.remove(client)
            client.close()

    def close(self) -> None:
        """Close the connections of all threads."""
        for client in self._clients:
            client.close()

    def _client(self, answer_s: float) -> Client:
        """Return this thread's connection, with `answer_s` as its read time-out."""
        client: Client | None = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = _connect(self._address)
            self._clients.append(client)
        if isinstance(client, HttpClient):
            client.timeout = Timeout(connect=self._address.timeout_s, read=answer_s)
        return client

    def _unavailable(self, error: Exception) -> ClickHouseUnavailableError:
        kind = ClickHouseAwayError if _is_passing(error) else ClickHouseUnavailableError
        return kind(f"ClickHouse at {self._address.place}: {_reason(error)}", retry_after_s=5)


def _connect(address: Address) -> Client:
    if address.path:
        return clickhouse_connect.get_client(dsn=f"chdb://{address.path}")
    seconds = math.ceil(address.timeout_s)  # the client takes whole seconds only
    return clickhouse_connect.get_client(
        host=address.host,
        port=address.port,
        username=address.user,
        password=address.password,
        secure=address.secure,
        connect_timeout=seconds,
        send_receive_timeout=seconds,
        autogenerate_session_id=False,
        dedicated_pool=True,  # so that closing the client closes its connection
    )


def _is_passing(error: Exception) -> bool:
    """Return whether the network or the server's state caused `error`, not the query."""
    code = getattr(error, "code", None)
    return code in _PASSING_ERRORS if code else not isinstance(error, ProgrammingError)


def _reason(error: Exception) -> str:
    """Return the cause of `error`: the server's message, or the network error."""
    if getattr(error, "code", None) == _AUTHENTICATION_FAILED:
        return f"{_said(error)}; check CLICKHOUSE_USER and CLICKHOUSE_PASSWORD"
    for cause in _causes(error):
        if isinstance(cause, TimeoutError):
            return "no answer in time"
        if isinstance(cause, OSError):
            return (
                f"no answer ({cause.strerror or cause}); check CLICKHOUSE_HOST and CLICKHOUSE_PORT"
            )
    return _said(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _said(error: Exception) -> str:
    """Return the first line of `error`, without the client's additions."""
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0].partition(" (for url ")[0]
    said = (
        line.partition("server response: ")[2]
        if line.startswith("Received ClickHouse exception")
        else line
    )
    return said[:500]
