"""Tests of export queries: cancelled at once, and retried after an outage of ClickHouse."""

import logging
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from mev.core.errors import MevError
from mev.datasets.query import Statement, checked
from mev.datasets.query_runner import QueryRunner
from mev.jobs.context import PROGRESS, Context
from mev.jobs.errors import CancelledJobError
from mev.store.clickhouse import (
    Address,
    ClickHouse,
    ClickHouseAwayError,
    ClickHouseUnavailableError,
)
from mev.wire.pb.events_pb2 import Bundle
from tests.services.waits import until
from tests.unit.datasets.stored import empty, export, put

ENDLESS = "SELECT count() FROM numbers(1000000000000) WHERE sipHash64(number) = 1"
RUNNING = "SELECT count() FROM system.processes WHERE Settings['log_comment'] LIKE {comment:String}"


def context(folder: Path, cancelled: Callable[[], bool] = lambda: False) -> Context:
    return Context({}, folder, folder, logging.getLogger("test"), cancelled)


def running(store: ClickHouse, job: str) -> int:
    return int(store.rows(RUNNING, {"comment": f"%{job}"})[0][0])


class Endless(ClickHouse):
    """The same engine, where the rows of a part have no end."""

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
        super().write_file(path, ENDLESS, {}, fmt=fmt, settings=settings, answer_s=answer_s)


def test_cancelling_ends_a_query_within_a_part(store: ClickHouse, tmp_path: Path) -> None:
    empty(store)
    put(store, "bundle", [Bundle(bundle_id="a", slot=1)])
    cancelled = threading.Event()

    def runs() -> bool:
        if running(store, "endless"):
            cancelled.set()
        return cancelled.is_set()

    with closing(Endless(store._address)) as endless, pytest.raises(CancelledJobError):
        export(endless, tmp_path / "endless", checked("bundle"), cancelled=runs)
    until(lambda: not running(store, "endless"))


@contextmanager
def silent_server() -> Iterator[tuple[Address, threading.Event]]:
    """Yield a server that accepts and never answers, and an event set at the first connection."""
    asked = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            with suppress(OSError):
                taken, _ = server.accept()
                asked.set()
                with taken:
                    while taken.recv(1024):
                        pass

        threading.Thread(target=take, daemon=True).start()
        yield (
            Address(
                database="mev", host="127.0.0.1", port=server.getsockname()[1], timeout_s=600.0
            ),
            asked,
        )
        server.shutdown(socket.SHUT_RDWR)


def test_cancelling_does_not_wait_for_a_server_that_is_silent(tmp_path: Path) -> None:
    with silent_server() as (address, asked):
        query_runner = QueryRunner(
            ClickHouse(address), context(tmp_path, asked.is_set), retry_s=600
        )
        with closing(query_runner), pytest.raises(CancelledJobError):
            query_runner.rows(Statement("SELECT 1", {}))


class Moody(ClickHouse):
    """Answers with one error after the other, then as the engine does."""

    def __init__(self, store: ClickHouse, *errors: MevError) -> None:
        super().__init__(store._address)
        self.errors = list(errors)
        self.asked = 0

    def rows_within(
        self,
        answer_s: float,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
    ) -> Sequence[Sequence[Any]]:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return super().rows_within(answer_s, sql, parameters, settings=settings)


def test_what_was_away_is_asked_again_and_meanwhile_the_job_says_so(
    store: ClickHouse, tmp_path: Path
) -> None:
    with closing(Moody(store, *[ClickHouseAwayError("gone")] * 2)) as moody:
        with closing(QueryRunner(moody, context(tmp_path), retry_s=600)) as query_runner:
            assert query_runner.rows(Statement("SELECT 7", {})) == [(7,)]
        assert moody.asked == 3
    assert orjson.loads((tmp_path / PROGRESS).read_bytes())["note"] == "waiting for ClickHouse"


def test_what_is_away_too_long_or_refuses_is_not_asked_again(
    store: ClickHouse, tmp_path: Path
) -> None:
    moody = Moody(store, *[ClickHouseAwayError("gone")] * 9)
    with (
        closing(moody),
        closing(QueryRunner(moody, context(tmp_path), retry_s=0.1)) as query_runner,
    ):
        with pytest.raises(
            ClickHouseUnavailableError, match=r"gone; it was away for .*EXPORT_RETRY_S"
        ):
            query_runner.rows(Statement("SELECT 7", {}))
        assert moody.asked == 2
        moody.errors = []
        with pytest.raises(ClickHouseUnavailableError, match="nonsense"):
            query_runner.rows(Statement("SELECT nonsense", {}))
        assert moody.asked == 3
