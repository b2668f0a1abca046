"""Tests of ClickHouse in both forms: embedded, and behind HTTP."""

import base64
import contextlib
import os
import signal
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import clickhouse_connect
import httpx
import orjson
import pytest

from mev.core.paging import InvalidCursorError
from mev.ingest.recent import History
from mev.sink.block import InsertBlock, join, join_located
from mev.sink.writer import Writer
from mev.store.clickhouse import (
    Address,
    ClickHouse,
    ClickHouseTooOldError,
    ClickHouseUnavailableError,
    UnreadableBlockError,
)
from mev.wire.pb.events_pb2 import Tick
from mev.wire.registry import EVENT_TYPES, PLACE_COLUMNS
from mev.wire.resume import decode, fingerprint
from tests.services.clickhouse import ClickHouseHttp

TICK = EVENT_TYPES["tick"]
LARGEST = 2**64 - 1


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """Give the embedded engine on a folder of this module."""
    path = tmp_path_factory.mktemp("embedded")
    address = Address(database="", path=path / "data")
    with contextlib.chdir(path), closing(ClickHouse(address)) as keeper:
        keeper.ping()
        yield address


def http_address(server: ClickHouseHttp) -> Address:
    return Address(
        database=f"test_{uuid.uuid4().hex}",
        host=server.host,
        port=server.port,
        user=server.user,
        password=server.password,
    )


@contextmanager
def with_tables(address: Address) -> Iterator[ClickHouse]:
    with closing(ClickHouse(address)) as store:
        Writer(store, lambda _: None, "cluster").prepare()
        yield store
        with contextlib.suppress(ClickHouseUnavailableError):  # where the test left it down
            store.command(f"DROP DATABASE `{address.database}`")


@pytest.fixture(params=["embedded", pytest.param("http", marks=pytest.mark.clickhouse_http)])
def store(request: pytest.FixtureRequest) -> Iterator[ClickHouse]:
    """Give a database of the test's own, with the tables of every event."""
    if request.param == "http":
        address = http_address(request.getfixturevalue("clickhouse_http"))
    else:
        address = replace(request.getfixturevalue("embedded"), database=f"test_{uuid.uuid4().hex}")
    with with_tables(address) as found:
        yield found


@pytest.fixture
def http_store(clickhouse_http: ClickHouseHttp) -> Iterator[ClickHouse]:
    """Give a database of the test's own behind HTTP."""
    with with_tables(http_address(clickhouse_http)) as found:
        yield found


def insert(store: ClickHouse, values: Sequence[bytes], token: str) -> None:
    columns, name = list(TICK.clickhouse_types), TICK.descriptor.name
    store.insert_protobuf(
        TICK.table, columns, join(values), schema=TICK.proto_schema, message=name, token=token
    )


def ticks(numbers: Sequence[int], market: str = "market") -> list[bytes]:
    return [Tick(market_id=market, timestamp_ns=number).SerializeToString() for number in numbers]


def stored(store: ClickHouse) -> list[int]:
    """Return the time of every row, repeats included: nothing collapses them here."""
    return [
        number
        for (number,) in store.rows(f"SELECT timestamp_ns FROM `{store.database}`.tick ORDER BY 1")
    ]


def test_a_ping_is_answered_and_a_command_is_obeyed(store: ClickHouse) -> None:
    store.ping()
    store.command(f"CREATE TABLE `{store.database}`.other (a UInt8) ENGINE = Memory")
    assert store.rows(
        "SELECT name FROM system.tables WHERE database = {d:String} AND name = 'other'",
        {"d": store.database},
    )


@pytest.mark.parametrize(
    ("type_name", "value"),
    [
        ("UInt64", LARGEST),
        ("Int64", -(2**63)),
        ("Float64", 0.1),
        ("Bool", True),
        (
            "String",
            (
                "tab\there, 'quotes', \"more\", back\\slash, new\nline, {x:String}, ütf-8 and"
                " \N{HONEYBEE}"
            ),
        ),
        ("Array(String)", ["it's", "", "a\\b"]),
    ],
)
def test_values_are_bound_not_pasted(store: ClickHouse, type_name: str, value: object) -> None:
    assert store.rows(f"SELECT {{v:{type_name}}}, 7", {"v": value}) == [(value, 7)]


def test_rows_are_typed_and_may_be_none(store: ClickHouse) -> None:
    assert store.rows("SELECT number, toString(number) FROM numbers(3)") == [
        (0, "0"),
        (1, "1"),
        (2, "2"),
    ]
    assert list(store.rows("SELECT number FROM numbers(3) WHERE number > 5")) == []
    assert len(store.rows("SELECT number, repeat('x', 100) FROM numbers(200000)")) == 200_000


def test_json_has_whole_integers_and_null_for_what_is_no_number(store: ClickHouse) -> None:
    sql = (
        "SELECT {large:UInt64} AS large, -9223372036854775808 AS small, nan AS nothing, inf AS"
        " endless, 'é\n' AS text"
    )
    (line,) = store.json_lines(sql, {"large": LARGEST})
    assert line.startswith(b'{"large":18446744073709551615,"small":-9223372036854775808,')
    assert orjson.loads(line) == {
        "large": LARGEST,
        "small": -(2**63),
        "nothing": None,
        "endless": None,
        "text": "é\n",
    }
    assert store.json_lines("SELECT 1 WHERE 0") == []


def test_what_json_asks_for_stays_with_the_question(store: ClickHouse) -> None:
    store.json_lines("SELECT 1")
    quoted = "SELECT value FROM system.settings WHERE name = 'output_format_json_quote_denormals'"
    before = store.rows(quoted)
    store.json_lines("SELECT nan")
    assert store.rows(quoted) == before


def test_a_block_is_stored_once_however_often_it_is_sent(store: ClickHouse) -> None:
    insert(store, ticks(range(1000)), "first")
    insert(store, ticks(range(1000)), "first")
    assert stored(store) == list(range(1000))
    insert(store, ticks(range(1000)), "second")
    assert len(stored(store)) == 2000


def test_every_field_of_a_block_arrives(store: ClickHouse) -> None:
    message = Tick(market_id="a\t'b'\\é", timestamp_ns=2**63 - 1, simulated=True)
    insert(store, [message.SerializeToString()], "token")
    columns = ", ".join(f"`{name}`" for name in TICK.clickhouse_types)
    (row,) = store.json_lines(f"SELECT {columns} FROM `{store.database}`.tick")
    assert orjson.loads(row) == {name: getattr(message, name) for name in TICK.clickhouse_types}


@pytest.mark.parametrize(
    "bad",
    [b"\xff\xff\xff", b"\x0a\x7fshort", b"\x08\x01"],
    ids=["no tag", "cut short", "another type"],
)
def test_an_unreadable_record_refuses_its_whole_block(store: ClickHouse, bad: bytes) -> None:
    good = ticks(range(10))
    with pytest.raises(UnreadableBlockError) as caught:
        insert(store, [*good[:5], bad, *good[5:]], "token")
    assert "\n" not in str(caught.value)
    assert stored(store) == []
    insert(store, good, "token")
    assert stored(store) == list(range(10))


def test_a_large_block_is_stored_whole(store: ClickHouse) -> None:
    values = ticks(range(65_536), market="m" * 100)
    insert(store, values, "large")
    insert(store, values, "large")
    assert store.rows(f"SELECT count(), uniqExact(timestamp_ns) FROM `{store.database}`.tick") == [
        (65_536, 65_536)
    ]


def test_a_row_is_inserted_by_the_names_of_its_columns(store: ClickHouse) -> None:
    row: Mapping[str, Any] = {
        "topic": "t'\t",
        "partition": 3,
        "first_offset": 0,
        "last_offset": 2**62,
        "records": 1,
        "dead_letters": 0,
    }
    store.insert_row("ingest_blocks", {"cluster": "c", **row})
    names = ", ".join(row)
    assert store.rows(
        f"SELECT {names} FROM `{store.database}`.ingest_blocks WHERE cluster = 'c'"
    ) == [tuple(row.values())]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda store: store.rows("SELECT nonsense"), "nonsense"),
        (lambda store: store.command("DROP TABLE no_such_table_here"), "no_such_table_here"),
        (lambda store: store.json_lines("SELECT * FROM no_such_database.t"), "no_such_database"),
        (lambda store: store.insert_row("no_such_table", {"a": 1}), "no_such_table"),
        (
            lambda store: store.insert_protobuf(
                "nowhere", ["a"], b"", schema="", message="M", token=""
            ),
            "nowhere",
        ),
    ],
    ids=["rows", "command", "json_lines", "insert_row", "insert_protobuf"],
)
def test_what_the_engine_refuses_is_said_in_one_line(
    store: ClickHouse, ask: Callable[[ClickHouse], object], said: str
) -> None:
    with pytest.raises(ClickHouseUnavailableError, match=said) as caught:
        ask(store)
    assert "\n" not in caught.value.detail
    assert "for url" not in caught.value.detail
    assert caught.value.detail.startswith(f"ClickHouse at {store.place}: Code: ")


def test_threads_do_not_disturb_each_other(store: ClickHouse) -> None:
    def work(thread: int) -> int:
        for step in range(10):
            insert(
                store,
                ticks(range(step * 10, step * 10 + 10), market=f"market-{thread}"),
                f"{thread}-{step}",
            )
            (line,) = store.json_lines("SELECT {n:UInt64} AS n, nan AS x", {"n": LARGEST - thread})
            assert orjson.loads(line) == {"n": LARGEST - thread, "x": None}
            assert store.rows("SELECT {t:UInt8}", {"t": thread}) == [(thread,)]
        return thread

    with ThreadPoolExecutor(8) as executor:
        assert list(executor.map(work, range(8))) == list(range(8))
    per_market = store.rows(
        f"SELECT market_id, count(), sum(timestamp_ns) FROM `{store.database}`.tick GROUP BY 1"
        " ORDER BY 1"
    )
    assert per_market == [(f"market-{thread}", 100, sum(range(100))) for thread in range(8)]


def test_a_server_that_does_not_know_inline_schemas_is_named(
    store: ClickHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((version,),) = store.rows("SELECT version()")
    store.check_version()
    monkeypatch.setattr("mev.store.clickhouse._INLINE_SCHEMAS", "a_setting_of_the_future")
    with pytest.raises(ClickHouseTooOldError) as caught:
        Writer(store, lambda _: None, "cluster").prepare()
    assert caught.value.code == "clickhouse_too_old"
    assert f"is version {version}" in caught.value.detail
    assert "inline Protobuf schemas" in caught.value.detail


@pytest.mark.parametrize(
    "wrong", [{"password": "wrong"}, {"user": "nobody"}, {"user": "default", "password": ""}]
)
def test_a_wrong_password_is_said_and_what_to_check(
    clickhouse_http: ClickHouseHttp, wrong: dict[str, str]
) -> None:
    address = replace(http_address(clickhouse_http), **wrong)  # type: ignore[arg-type]
    with closing(ClickHouse(address)) as store, pytest.raises(ClickHouseUnavailableError) as caught:
        store.ping()
    detail = caught.value.detail
    assert detail.startswith(f"ClickHouse at {address.place}: Code: 516.")
    assert detail.endswith("check CLICKHOUSE_USER and CLICKHOUSE_PASSWORD")
    assert "\n" not in detail
    assert clickhouse_http.password not in detail


def test_a_server_that_is_not_there_is_said_and_what_to_check(
    clickhouse_http: ClickHouseHttp,
) -> None:
    clickhouse_http.kill()
    address = http_address(clickhouse_http)
    with closing(ClickHouse(address)) as store, pytest.raises(ClickHouseUnavailableError) as caught:
        store.ping()
    reason = "no answer (Connection refused); check CLICKHOUSE_HOST and CLICKHOUSE_PORT"
    assert caught.value.detail == f"ClickHouse at {address.place}: {reason}"
    assert caught.value.retry_after_s


@pytest.mark.slow
def test_a_killed_server_comes_back_under_the_same_connections(
    clickhouse_http: ClickHouseHttp, http_store: ClickHouse
) -> None:
    with ThreadPoolExecutor(4) as executor:  # each thread has a connection from before
        for _ in range(2):
            list(executor.map(lambda n: insert(http_store, ticks([n]), str(n)), range(20)))
            clickhouse_http.kill()
            away = [executor.submit(http_store.ping) for _ in range(8)]
            assert all(
                isinstance(future.exception(), ClickHouseUnavailableError) for future in away
            )
            with pytest.raises(ClickHouseUnavailableError):
                insert(http_store, ticks([99]), "99")
            clickhouse_http.start()
            list(executor.map(lambda n: insert(http_store, ticks([n]), str(n)), range(20)))
            assert [
                future.exception()
                for future in [executor.submit(http_store.ping) for _ in range(8)]
            ] == [None] * 8
    assert stored(http_store) == list(range(20))


@pytest.mark.slow
def test_an_orderly_restart_needs_nothing_either(
    clickhouse_http: ClickHouseHttp, http_store: ClickHouse
) -> None:
    insert(http_store, ticks([1]), "1")
    clickhouse_http.stop()
    clickhouse_http.start()
    assert stored(http_store) == [1]
    insert(http_store, ticks([1]), "1")
    assert stored(http_store) == [1]


@pytest.fixture
def stopped(
    request: pytest.FixtureRequest, clickhouse_http: ClickHouseHttp, http_store: ClickHouse
) -> Iterator[ClickHouse]:
    """Yield a connection to a server that never answers; only the named timeout is short."""
    bounds = {
        "timeout_s": 3600,
        "query_timeout_s": 3600,
        "insert_timeout_s": 3600,
        getattr(request, "param", "insert_timeout_s"): 1,
    }
    address = replace(http_store._address, **bounds)  # type: ignore[arg-type]
    with closing(ClickHouse(address)) as impatient:
        impatient.ping()
        assert clickhouse_http.pid is not None
        os.kill(clickhouse_http.pid, signal.SIGSTOP)
        yield impatient
        os.kill(clickhouse_http.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("stopped", "ask"),
    [
        ("timeout_s", lambda store: store.ping()),
        ("query_timeout_s", lambda store: store.rows("SELECT 1")),
        ("query_timeout_s", lambda store: store.json_lines("SELECT 1")),
        ("insert_timeout_s", lambda store: store.command("SELECT 1")),
        ("insert_timeout_s", lambda store: insert(store, ticks([1]), "1")),
        ("insert_timeout_s", lambda store: store.insert_row("ingest_blocks", {"cluster": "c"})),
    ],
    ids=["ping", "rows", "json_lines", "command", "insert_protobuf", "insert_row"],
    indirect=["stopped"],
)
def test_a_server_that_never_answers_is_given_up(
    stopped: ClickHouse, ask: Callable[[ClickHouse], object]
) -> None:
    with pytest.raises(ClickHouseUnavailableError, match=r": no answer in time$"):
        ask(stopped)


def test_a_server_that_never_answers_the_first_question_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = Address(
            database="mev", host="127.0.0.1", port=silent.getsockname()[1], timeout_s=0.2
        )
        with (
            closing(ClickHouse(address)) as store,
            pytest.raises(ClickHouseUnavailableError, match="no answer in time"),
        ):
            store.ping()


def test_a_server_that_was_given_up_is_asked_again(
    stopped: ClickHouse, clickhouse_http: ClickHouseHttp
) -> None:
    with pytest.raises(ClickHouseUnavailableError):
        insert(stopped, ticks([1]), "1")
    assert clickhouse_http.pid is not None
    os.kill(clickhouse_http.pid, signal.SIGCONT)
    insert(stopped, ticks([1]), "1")
    assert stored(stopped) == [1]


def test_something_else_on_the_port_is_not_taken_for_a_server(
    clickhouse_http: ClickHouseHttp,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as executor:
        executor.submit(
            _answer_once,
            listener,
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\nconnection: close\r\n\r\nnope\n",
        )
        address = replace(http_address(clickhouse_http), port=listener.getsockname()[1])
        with (
            closing(ClickHouse(address)) as store,
            pytest.raises(ClickHouseUnavailableError, match=r"HTTP status 404, .*nope$"),
        ):
            store.ping()


def _answer_once(listener: socket.socket, answer: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(answer)


@pytest.mark.parametrize("method", ["lz4", "zstd", "gzip", False])
def test_every_compression_of_the_client_is_spoken(
    clickhouse_http: ClickHouseHttp, http_store: ClickHouse, method: str | bool
) -> None:
    table = f"`{http_store.database}`.numbers"
    http_store.command(
        f"CREATE TABLE {table} (n UInt64, text String) ENGINE = MergeTree ORDER BY n"
    )
    rows = [(number, "text" * 10) for number in range(20_000)]
    client = clickhouse_connect.get_client(
        host=clickhouse_http.host,
        port=clickhouse_http.port,
        username=clickhouse_http.user,
        password=clickhouse_http.password,
        compress=method,
        dedicated_pool=True,
    )
    with closing(client):
        assert client.insert(table, rows, column_names=["n", "text"]).written_rows == len(rows)
        assert client.query(f"SELECT * FROM {table} ORDER BY n").result_rows == rows


@pytest.mark.parametrize("method", ["lz4", "zstd", "gzip"])
def test_answers_are_compressed_as_asked(clickhouse_http: ClickHouseHttp, method: str) -> None:
    url, login = (
        f"http://{clickhouse_http.host}:{clickhouse_http.port}/",
        (clickhouse_http.user, clickhouse_http.password),
    )
    with httpx.stream(
        "POST", url, content=b"SELECT 1", auth=login, headers={"Accept-Encoding": method}
    ) as answer:
        assert answer.headers["content-encoding"] == method
    with httpx.stream(
        "POST", url, content=b"SELECT 1", auth=login, headers={"Accept-Encoding": "identity"}
    ) as answer:
        assert b"".join(answer.iter_raw()) == b"1\n"


def test_what_was_stored_is_on_disk(
    clickhouse_http: ClickHouseHttp, http_store: ClickHouse
) -> None:
    insert(http_store, ticks(range(100)), "token")
    assert stored(http_store) == list(range(100))
    assert any(Path(clickhouse_http.folder, "data").iterdir())


def test_history_gives_places_in_its_log_alone(store: ClickHouse) -> None:
    writer = Writer(store, lambda _records: None, "log-2")
    writer.prepare()
    insert(store, ticks([1]), "of an earlier release")
    for log, numbers in (("log-1", [2]), ("log-2", [3, 4])):
        block = InsertBlock((TICK.topic, 1))
        for offset, value in enumerate(ticks(numbers), 7):
            block.append(offset, b"market", value)
        replace(writer, cluster=log).write(block)
    history = History(store, "log-2", 10.0)
    page = history.page(TICK, {}, limit=3, cursor=None)
    rows = [orjson.loads(row) for row in page.items]
    assert [(row["timestamp_ns"], row["partition"], row["offset"]) for row in rows] == [
        (4, 1, 8),
        (3, 1, 7),
        (2, None, None),
    ]
    assert decode(page.resume, EVENT_TYPES) == (fingerprint("log-2"), {(TICK.topic, 1): 9})
    (last,) = history.page(TICK, {}, limit=3, cursor=page.next_cursor).items
    assert orjson.loads(last)["timestamp_ns"] == 1
    for wrong in (
        "x",
        base64.urlsafe_b64encode(b'["x", []]').decode(),
        base64.urlsafe_b64encode(b"[1]").decode(),
    ):
        with pytest.raises(InvalidCursorError, match="cursor: not one of this list"):
            history.page(TICK, {}, limit=3, cursor=wrong)


def test_rows_that_are_not_noted_yet_are_left_to_the_stream(store: ClickHouse) -> None:
    Writer(store, lambda _records: None, "log").prepare()
    block = InsertBlock((TICK.topic, 0), [0, 1], [b"", b""], ticks([1, 2]))
    columns = [*TICK.clickhouse_types, *PLACE_COLUMNS]
    body = join_located(block, fingerprint("log"))
    store.insert_protobuf(
        TICK.table, columns, body, schema=TICK.located_schema, message="Tick", token="t"
    )
    page = History(store, "log", 10.0).page(TICK, {}, limit=3, cursor=None)
    assert page.items == []
    assert decode(page.resume, EVENT_TYPES) == (fingerprint("log"), {})
