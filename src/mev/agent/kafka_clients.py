"""Kafka clients of an agent: control topic and events in, reports and decisions out.

A few batches are buffered for the event loop: a busy agent slows the reading instead of using
memory. Blocking client calls run in threads; closing clients is waited for only at the end, with a
limit.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from mev.bus.batch import PartitionBatch
from mev.bus.follow import Followed, PartitionFollower
from mev.bus.kafka import Brokers, PublishError
from mev.bus.publisher import Publisher
from mev.bus.tail import Tail
from mev.core.clock import Clock
from mev.core.tasks import Handover, in_thread
from mev.wire.registry import KafkaRecord
from mev.wire.topics import CONTROL

LOG = logging.getLogger(__name__)
T = TypeVar("T")
_WAITING_BATCHES = 4
_QUEUE_MESSAGES = 100_000
_QUEUE_KBYTES = 65_536
_PUBLISH_TIMEOUT_S = 3.0
_LINGER_MS = 0.5
_CLOSE_S = 5.0
_OPENED_S = 1.0


class Inbox(Generic[T]):
    """A bounded queue from threads into the event loop that creates it; `put` blocks when full."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[T, bool]] = asyncio.Queue()
        self._handover: Handover[tuple[T, bool]] = Handover(
            self._queue.put_nowait, _WAITING_BATCHES
        )

    def put(self, item: T) -> None:
        """Put from a thread."""
        self._handover.put((item, True))

    def push(self, item: T) -> None:
        """Put from the event loop, without a limit."""
        self._queue.put_nowait((item, False))

    async def get(self) -> T:
        """Return the next item."""
        item, took_room = await self._queue.get()
        if took_room:
            self._handover.release()
        return item

    def close(self) -> None:
        """Release blocked threads; their items are lost."""
        self._handover.close()


class KafkaClients:
    """Clients of the current cluster, created in the event loop; `down` is called there.

    `control` receives the messages of the control topic with their time of arrival.
    """

    def __init__(
        self,
        control: Inbox[Any],
        topics: Sequence[str],
        down: Callable[[str], None],
        clock: Clock,
        *,
        timeout_s: float,
    ) -> None:
        self._control = control
        self.events: Inbox[list[PartitionBatch]] = Inbox()
        self._loop = asyncio.get_running_loop()
        self._topics = list(topics)
        self._down = down
        self._clock = clock
        self._timeout_s = timeout_s
        self._follower = PartitionFollower(CONTROL, self._deliver, self._lost, timeout_s=timeout_s)
        self._publisher: Publisher | None = None
        self._tail: Tail | None = None
        self._moved: asyncio.Future[None] = self._loop.create_future()
        self._opening: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._ended = False

    @property
    def opening(self) -> bool:
        """Return whether a connection is being opened."""
        return self._opening is not None and not self._opening.done()

    async def open(self, brokers: Brokers, offset: int) -> None:
        """Connect to `brokers`: control topic from `offset`, events from now.

        Close the old clients.

        :raises BrokerUnavailableError: when the brokers do not answer.
        """
        # The caller may be cancelled; opening is finished, so that the clients can be closed.
        self._opening = asyncio.create_task(self._open(brokers, offset))
        self._opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._opening)

    async def _open(self, brokers: Brokers, offset: int) -> None:
        await in_thread("link-follow", partial(self._follower.follow, brokers, offset))
        publisher = await in_thread("link-publisher", partial(_new_publisher, brokers))
        before, self._publisher = self._publisher, publisher
        moved, self._moved = self._moved, self._loop.create_future()
        moved.set_result(None)
        if before is not None:
            self._let_go(before.close)
        if self._tail is not None:
            tail, self._tail = self._tail, None
            self._let_go(tail.close)
        if self._topics:
            self._tail = await in_thread("link-tail", partial(self._new_tail, brokers))

    async def publish(self, topic: str, records: list[KafkaRecord]) -> None:
        """Publish `records` and return when the brokers have acknowledged them.

        :raises PublishError: when they have not.
        :raises QueueFullError: when the queue is full.
        """
        if self._publisher is None:
            raise PublishError("not connected yet")
        # The previous brokers may never answer.
        publishing = asyncio.ensure_future(self._publisher.publish(topic, records))
        try:
            await asyncio.wait((publishing, self._moved), return_when=asyncio.FIRST_COMPLETED)
            if not publishing.done():
                raise PublishError(f"{topic}: the brokers were left before they answered")
            publishing.result()
        finally:
            publishing.cancel()

    async def close(self) -> None:
        """Stop reading and close all clients; slow ones are abandoned after a few seconds."""
        self._control.close()
        self.events.close()
        self._ended = True
        if self._opening is not None and self.opening:
            await asyncio.wait([self._opening], timeout=_OPENED_S)
            self._opening.cancel()
        self._let_go(self._follower.close)
        if self._tail is not None:
            self._let_go(self._tail.close)
        if self._publisher is not None:
            self._let_go(self._publisher.close)
        _, waiting = await asyncio.wait(self._closing, timeout=_CLOSE_S)
        if waiting:
            LOG.warning(
                "%d Kafka clients did not end in time",
                len(waiting),
                extra={"action": "clients_left"},
            )

    def _new_tail(self, brokers: Brokers) -> Tail:
        tail = Tail(brokers, self._topics, self.events.put, timeout_s=self._timeout_s)
        try:
            tail.start()
        except BaseException:
            tail.close()
            raise
        if self._ended:
            tail.close()
        return tail

    def _let_go(self, close: Callable[[], None]) -> None:
        task = asyncio.create_task(in_thread("link-close", close))
        self._closing.add(task)
        task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.warning(
                "a Kafka client did not end well: %r", error, extra={"action": "clients_left"}
            )

    def _deliver(self, followed: Followed) -> None:
        self._control.put((followed, self._clock()))

    def _lost(self, reason: str) -> None:
        self._loop.call_soon_threadsafe(self._down, reason)


def _new_publisher(brokers: Brokers) -> Publisher:
    return Publisher(
        brokers,
        queue_messages=_QUEUE_MESSAGES,
        queue_kbytes=_QUEUE_KBYTES,
        linger_ms=_LINGER_MS,
        timeout_s=_PUBLISH_TIMEOUT_S,
    )
