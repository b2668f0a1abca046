"""Runs the queries of one export: cancellable at any time, retried if ClickHouse is unavailable."""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from mev.core.errors import MevError
from mev.datasets.query import Statement
from mev.jobs.context import Context
from mev.store.clickhouse import ClickHouse, ClickHouseAwayError, ClickHouseUnavailableError

_ANSWER_S = 600.0
_LOOK_S = 0.1
_LAST_WORD_S = 0.5
_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)
T = TypeVar("T")
_Calls = queue.SimpleQueue[tuple[Callable[[], Any], "Future[Any]"] | None]


class QueryRunner:
    """Query runner of one export, used by its thread; close it at the end.

    Queries run in a second thread, so that the export can leave a server that does not answer.
    """

    def __init__(self, clickhouse: ClickHouse, context: Context, *, retry_s: float) -> None:
        self._clickhouse = clickhouse
        self._context = context
        self._retry_s = retry_s
        self._comment = f"mev export {context.folder.name}"
        self._calls: _Calls = queue.SimpleQueue()
        # A daemon thread: waiting for a server must not block the end of the process.
        threading.Thread(target=self._answer, name="export query", daemon=True).start()

    @property
    def database(self) -> str:
        """The database of all tables."""
        return self._clickhouse.database

    def rows(self, statement: Statement) -> Sequence[Sequence[Any]]:
        """Return the rows of a query.

        :raises CancelledJobError: as soon as the job is cancelled.
        :raises ClickHouseUnavailableError: if the query is refused, or ClickHouse is unavailable
            too long.
        """
        settings = {"log_comment": self._comment}
        return self._ask(
            lambda: self._clickhouse.rows_within(
                _ANSWER_S, statement.sql, statement.values, settings=settings
            )
        )

    def write_file(
        self, path: Path, statement: Statement, *, fmt: str, settings: Mapping[str, Any]
    ) -> None:
        """Write the rows of a query to `path`, replacing any file; raises like :meth:`rows`."""
        settings = {**settings, "log_comment": self._comment}

        def write() -> None:
            path.unlink(missing_ok=True)
            self._clickhouse.write_file(
                path,
                statement.sql,
                statement.values,
                fmt=fmt,
                settings=settings,
                answer_s=_ANSWER_S,
            )

        self._ask(write)

    def wait(self, seconds: float, why: str) -> None:
        """Wait, with `why` as the job's remark.

        :raises CancelledJobError: as soon as the job is cancelled.
        """
        deadline = time.monotonic() + seconds
        self._context.remark(why)
        while (left := deadline - time.monotonic()) > 0:
            self._context.check()
            time.sleep(min(_LOOK_S, left))

    def close(self) -> None:
        """End the second thread."""
        self._calls.put(None)

    def _ask(self, call: Callable[[], T]) -> T:
        away_s, pauses = 0.0, iter(_PAUSES_S)
        pause_s = 0.0
        while True:
            started = time.monotonic()
            try:
                answer = self._once(call)
            except ClickHouseAwayError as error:
                if away_s >= self._retry_s:
                    raise ClickHouseUnavailableError(
                        f"{error.detail}; it was away for {away_s:.0f} s (EXPORT_RETRY_S)"
                    ) from None
                if not away_s:
                    self._context.log.warning("%s; waiting until it answers", error.detail)
                pause_s = next(pauses, pause_s)
                self.wait(min(pause_s, self._retry_s - away_s), "waiting for ClickHouse")
                away_s += time.monotonic() - started
            else:
                if away_s:
                    self._context.log.info("ClickHouse answers again, after %.0f s", away_s)
                return answer

    def _once(self, call: Callable[[], T]) -> T:
        self._context.check()
        future: Future[T] = Future()
        self._calls.put((call, future))
        while not _is_done(future, _LOOK_S):
            if self._context.is_cancelled():
                threading.Thread(target=self._kill, name="export kill", daemon=True).start()
                # Afterwards nothing writes any more, unless the server does not answer.
                _is_done(future, _LAST_WORD_S)
                self._context.check()
        self._context.check()  # preferred to the error of a killed query
        return future.result()

    def _answer(self) -> None:
        while (found := self._calls.get()) is not None:
            call, future = found
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - raised by the waiting thread
                future.set_exception(error)
        self._clickhouse.release()

    def _kill(self) -> None:
        with suppress(MevError):
            self._clickhouse.kill(self._comment)
        self._clickhouse.release()


def _is_done(future: "Future[Any]", seconds: float) -> bool:
    return bool(wait([future], seconds).done)
