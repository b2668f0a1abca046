"""Readiness of storage: ClickHouse accepts a row, and the sink has no refused block."""

import threading
import time
from collections.abc import Callable

from mev.core.errors import UnavailableError
from mev.sink.service import Sink, partition_names
from mev.sink.writer import WRITE_CHECKS
from mev.store.clickhouse import ClickHouse, ClickHouseUnavailableError


class WriteCheck:
    """Health check of ClickHouse: a query, and every `every_s` seconds an insert.

    After a failed insert every check tries again, so that readiness recovers with the disk.
    """

    def __init__(
        self, clickhouse: ClickHouse, *, every_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clickhouse = clickhouse
        self._every_s = every_s
        self._clock = clock
        self._due_s = 0.0
        self._lock = threading.Lock()

    def check(self) -> None:
        """Return if ClickHouse answers and accepts rows; blocks.

        :raises ClickHouseUnavailableError: if it does not.
        """
        if not self._lock.acquire(blocking=False):  # threads must not queue up
            raise ClickHouseUnavailableError("the check before this one has no answer yet")
        try:
            self._clickhouse.ping()
            if self._clock() >= self._due_s:
                self._write()
                self._due_s = self._clock() + self._every_s
        finally:
            self._lock.release()

    def _write(self) -> None:
        try:
            self._clickhouse.command_in_time(
                # Our own names.
                f"INSERT INTO `{self._clickhouse.database}`.`{WRITE_CHECKS}` (at) "  # noqa: S608
                "VALUES (now64(3))"
            )
        except ClickHouseUnavailableError as error:
            raise ClickHouseUnavailableError(f"no row can be stored: {error.detail}") from None


def check_sink(sink: Sink) -> None:
    """Return if the sink runs and reads, and none of its blocks is refused.

    :raises UnavailableError: with the reason, if not.
    """
    if sink.failure is not None:
        raise UnavailableError(
            f"the sink ended: {sink.failure}; see the log, then restart", code="sink_failed"
        )
    if not sink.has_joined:
        raise UnavailableError(
            "the sink waits for its share of the partitions, "
            "as it does for some seconds after a start",
            code="sink_failed",
        )
    if stalled := sink.stalled:
        raise UnavailableError(
            f"no message of {partition_names(stalled)} is read although there are some; "
            "see sink_stalled in the log",
            code="sink_failed",
        )
    if (refusal := sink.refusal) is not None:
        raise UnavailableError(
            f"blocks wait to be stored, and are tried again: {refusal}", code="sink_failed"
        )
