"""Publishing of whole batches with acknowledgement; refused when the queue is full."""

import asyncio
import threading
import time
import weakref
from concurrent.futures import Future
from typing import Any, cast

from confluent_kafka import KafkaException, Producer
from prometheus_client import Counter, Histogram

from mev.bus.kafka import POLL_S, Brokers, PublishError, QueueFullError
from mev.wire.registry import BY_TOPIC, KafkaRecord
from mev.wire.topics import OTHER_TOPICS

PUBLISHED = Counter("mev_publish_messages_total", "Messages the brokers acknowledged.", ["topic"])
FAILED = Counter("mev_publish_failed_total", "Messages the brokers did not acknowledge.", ["topic"])
SECONDS = Histogram(
    "mev_publish_seconds",
    "From publish to the last acknowledgement of a batch.",
    buckets=[0.0005 * 2**n for n in range(16)],
)
BY_KEY = -1  # the message key selects the partition
_RETRY_PAUSE_S = 0.2


class _Failures:
    """Receives the delivery errors of one batch.

    The client holds a reference for each message in flight and drops it on delivery. The finalizer
    of this object therefore ends the batch: it costs nothing per message, while a callback for each
    message would double the cost of publishing.
    """

    __slots__ = ("__weakref__", "_heard")

    def __init__(self, heard: list[Any]) -> None:
        self._heard = heard

    def __call__(self, error: Any, _message: object) -> None:
        self._heard.append(error)


class Publisher:
    """A producer with its poll thread.

    Methods are thread-safe, :meth:`publish` needs an event loop.

    `queue_messages` and `queue_kbytes` limit the queue, `timeout_s` the wait for acknowledgement.
    """

    def __init__(
        self,
        brokers: Brokers,
        *,
        queue_messages: int,
        queue_kbytes: int,
        linger_ms: float,
        timeout_s: float,
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
        for topic in (*BY_TOPIC, *OTHER_TOPICS):  # an alert needs the value before the first one
            FAILED.labels(topic)
        self._closing = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="publisher-poll", daemon=True)
        self._poller.start()

    async def publish(
        self, topic: str, records: list[KafkaRecord], *, partition: int = BY_KEY
    ) -> None:
        """Publish `records` and return when the brokers have acknowledged all.

        :raises QueueFullError: when nothing or only a part was queued; publish the same records
            again later.
        :raises PublishError: when a message was not acknowledged in time; publish the same records
            again.
        """
        await asyncio.wrap_future(self._enqueue(topic, records, partition))

    def publish_and_wait(self, topic: str, records: list[KafkaRecord]) -> None:
        """Publish `records` from a thread.

        Wait while the queue is full and until all are acknowledged.

        :raises PublishError: when a message was not acknowledged in time; publish the same records
            again.
        """
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                self._enqueue(topic, records, BY_KEY).result(self._timeout_s * 2)
            except QueueFullError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_PAUSE_S)
            else:
                return

    def fullness(self) -> float:
        """Return the fill level of the queue, from 0 to 1."""
        return len(self._producer) / self._queue_messages

    def close(self) -> None:
        """Flush the queue, up to the publish time-out, and stop."""
        self._producer.flush(self._timeout_s)
        self._closing.set()
        self._poller.join()
        self._producer.close()

    def _enqueue(self, topic: str, records: list[KafkaRecord], partition: int) -> Future[None]:
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # cannot be cancelled: queued messages are sent
        if not records:
            future.set_result(None)
            return future
        if len(self._producer) + len(records) > self._queue_messages:
            raise _queue_full()
        if self._produce(topic, records, partition, future) < len(records):
            raise _queue_full()
        return future

    def _produce(
        self, topic: str, records: list[KafkaRecord], partition: int, future: Future[None]
    ) -> int:
        started, size = time.perf_counter(), len(records)
        failures: list[Any] = []

        def settled() -> None:
            if not failures:
                PUBLISHED.labels(topic).inc(size)
                SECONDS.observe(time.perf_counter() - started)
                future.set_result(None)
            else:
                FAILED.labels(topic).inc(len(failures))
                future.set_exception(
                    PublishError(
                        f"{topic}: {failures[0].str()}; publish the same records again",
                        retry_after_s=1,
                    )
                )

        hears = _Failures(failures)
        weakref.finalize(hears, settled).atexit = False
        try:
            return self._producer.produce_batch(
                topic, cast("list[dict[str, Any]]", records), partition=partition, on_delivery=hears
            )
        except KafkaException as error:
            failures.append(error.args[0])
            raise PublishError(f"{topic}: {error.args[0].str()}", retry_after_s=5) from None

    def _poll(self) -> None:
        while not self._closing.is_set():
            self._producer.poll(POLL_S)


def _queue_full() -> QueueFullError:
    return QueueFullError(
        "the producer's queue is full: the brokers take less than is sent; send again later",
        retry_after_s=1,
    )
