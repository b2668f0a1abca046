"""Publishing: whole batches at once, acknowledged by the brokers, refused when the queue is full."""

import asyncio
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, cast

from confluent_kafka import KafkaException, Producer
from prometheus_client import Counter, Histogram

from mev.bus.embedded import PART_BYTES, Backlog
from mev.bus.errors import PublishError, QueueFullError
from mev.bus.kafka import Brokers
from mev.wire.registry import Record

PUBLISHED = Counter("mev_publish_messages_total", "Messages the brokers acknowledged.", ["topic"])
FAILED = Counter("mev_publish_failed_total", "Messages the brokers did not acknowledge.", ["topic"])
SECONDS = Histogram(
    "mev_publish_seconds", "From publish to the last acknowledgement of a batch.", buckets=[0.0005 * 2**n for n in range(16)]
)
BY_KEY = -1  # the message key chooses the partition
_RETRY_PAUSE_S = 0.2
_ROOM_PAUSE_S = 0.02


class _Failures:
    """Hears of each message of one batch that was not delivered.

    The client holds it once for each message that is under way and lets go as they are settled. When nobody holds it any more the
    batch is done: that costs nothing for a message, where a call for each would cost as much as publishing it.
    """

    __slots__ = ("__weakref__", "_heard")

    def __init__(self, heard: list[Any]) -> None:
        self._heard = heard

    def __call__(self, error: Any, _message: object) -> None:
        self._heard.append(error)


class Publisher:
    """A producer with its poll thread. All methods are thread-safe; :meth:`publish` belongs to an event loop.

    `queue_messages` and `queue_kbytes` bound what waits in memory, `timeout_s` the wait for acknowledgement. `backlog` is given
    with the embedded broker only.
    """

    def __init__(
        self,
        brokers: Brokers,
        *,
        queue_messages: int,
        queue_kbytes: int,
        linger_ms: float,
        timeout_s: float,
        backlog: Backlog | None = None,
    ) -> None:
        self._producer = Producer(
            brokers.config(
                enable_idempotence=True,
                delivery_report_only_error=True,
                linger_ms=linger_ms,
                message_timeout_ms=int(timeout_s * 1000),
                queue_buffering_max_messages=queue_messages,
                queue_buffering_max_kbytes=queue_kbytes,
            )
        )
        self._queue_messages = queue_messages
        self._timeout_s = timeout_s
        self._backlog = backlog
        self._closing = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="publisher-poll", daemon=True)
        self._poller.start()

    async def publish(self, topic: str, records: list[Record], *, partition: int = BY_KEY) -> None:
        """Publish `records` and return when the brokers have them all.

        :raises QueueFullError: nothing or only a part was taken; publish the same records again later.
        :raises PublishError: a message was not acknowledged in time; publish the same records again.
        """
        for number, part in enumerate(self._parts(records)):
            if number:  # the embedded broker takes a large batch as the sink makes room for it
                await self._room(topic)
            await asyncio.wrap_future(self._enqueue(topic, part, partition))

    def publish_and_wait(self, topic: str, records: list[Record]) -> None:
        """Publish `records` from a thread, waiting while the queue is full, and return when the brokers have them all.

        :raises PublishError: a message was not acknowledged in time; publish the same records again.
        """
        for part in self._parts(records):
            self._publish_part(topic, part)

    def fullness(self) -> float:
        """Return how full the queue is, from 0 to 1."""
        return len(self._producer) / self._queue_messages

    def close(self) -> None:
        """Wait for what is queued, up to the publish time-out, and stop."""
        self._producer.flush(self._timeout_s)
        self._closing.set()
        self._poller.join()
        self._producer.close()
        if self._backlog:
            self._backlog.close()

    def _publish_part(self, topic: str, part: list[Record]) -> None:
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                self._enqueue(topic, part, BY_KEY).result(self._timeout_s * 2)
            except QueueFullError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_PAUSE_S)
            else:
                return

    def _parts(self, records: list[Record]) -> Iterator[list[Record]]:
        """Cut `records` into what the embedded broker takes at once; brokers take them whole."""
        if not self._backlog:
            yield records
            return
        start, size = 0, 0
        for index, record in enumerate(records):
            size += len(record["value"])
            if size > PART_BYTES and index > start:
                yield records[start:index]
                start, size = index, len(record["value"])
        yield records[start:]

    async def _room(self, topic: str) -> None:
        deadline = time.monotonic() + self._timeout_s
        while self._backlog and self._backlog.is_full(topic) and time.monotonic() < deadline:  # noqa: ASYNC110 - a thread's news
            await asyncio.sleep(_ROOM_PAUSE_S)

    def _enqueue(self, topic: str, records: list[Record], partition: int) -> Future[None]:
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # nobody can cancel it: what is queued is sent
        if not records:
            future.set_result(None)
            return future
        if self._backlog and self._backlog.is_full(topic):
            raise _backlog_full(topic)
        if len(self._producer) + len(records) > self._queue_messages:
            raise _queue_full()
        size_bytes = sum(len(record["value"]) for record in records) if self._backlog else 0
        if self._produce(topic, records, partition, size_bytes, future) < len(records):
            raise _queue_full()
        if self._backlog:
            self._backlog.sent(topic, len(records), size_bytes)
        return future

    def _produce(self, topic: str, records: list[Record], partition: int, size_bytes: int, future: Future[None]) -> int:
        started, size = time.perf_counter(), len(records)
        failures: list[Any] = []

        def settled() -> None:
            if self._backlog:
                self._backlog.settled(topic, size_bytes)
            if not failures:
                PUBLISHED.labels(topic).inc(size)
                SECONDS.observe(time.perf_counter() - started)
                future.set_result(None)
            else:
                FAILED.labels(topic).inc(len(failures))
                future.set_exception(PublishError(f"{topic}: {failures[0].str()}; publish the same records again", retry_after_s=1))

        hears = _Failures(failures)
        weakref.finalize(hears, settled).atexit = False
        try:
            return self._producer.produce_batch(topic, cast("list[dict[str, Any]]", records), partition=partition, on_delivery=hears)
        except KafkaException as error:
            failures.append(error.args[0])
            raise PublishError(f"{topic}: {error.args[0].str()}", retry_after_s=5) from None

    def _poll(self) -> None:
        while not self._closing.is_set():
            self._producer.poll(0.1)


def _queue_full() -> QueueFullError:
    return QueueFullError("the producer's queue is full: the brokers take less than is sent; send again later", retry_after_s=1)


def _backlog_full(topic: str) -> QueueFullError:
    return QueueFullError(f"{topic}: the embedded broker holds all it can until the sink has stored it; send again later", retry_after_s=1)
