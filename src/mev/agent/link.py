"""The agent's connection to the brokers: the control topic and events in, reports and decisions out.

What its threads read waits for the event loop a few batches at a time, so that a busy agent slows the reading and not the memory. No call
of a Kafka client that may wait is made in the event loop, and letting a client go is waited for only at the end, and then not for long.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from mev.agent.clock import Clock
from mev.agent.thread import in_thread
from mev.bus.batch import Batch
from mev.bus.errors import PublishError
from mev.bus.follow import Followed, Follower
from mev.bus.kafka import Brokers
from mev.bus.publisher import Publisher
from mev.bus.tail import Tail
from mev.wire.registry import Record
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
    """A short queue from threads into the event loop it is made in. A thread that puts waits while it is full."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[T, bool]] = asyncio.Queue()
        self._room = threading.Semaphore(_WAITING_BATCHES)
        self._closed = False

    def put(self, item: T) -> None:
        """Put from a thread."""
        while not self._room.acquire(timeout=0.1):
            if self._closed:
                return
        self._loop.call_soon_threadsafe(self._queue.put_nowait, (item, True))

    def push(self, item: T) -> None:
        """Put from the event loop, however full it is."""
        self._queue.put_nowait((item, False))

    async def get(self) -> T:
        """Take the next item."""
        item, took_room = await self._queue.get()
        if took_room:
            self._room.release()
        return item

    def close(self) -> None:
        """Let threads that wait go; what they wanted to put is lost."""
        self._closed = True


class Link:
    """Clients of one cluster, and then of the next. Made in the event loop; `down` is called there.

    `control` gets what was read of the control topic, each with the time it came.
    """

    def __init__(self, control: Inbox[Any], topics: Sequence[str], down: Callable[[str], None], clock: Clock, *, timeout_s: float) -> None:
        self._control = control
        self.events: Inbox[list[Batch]] = Inbox()
        self._loop = asyncio.get_running_loop()
        self._topics = list(topics)
        self._down = down
        self._clock = clock
        self._timeout_s = timeout_s
        self._follower = Follower(CONTROL, self._deliver, self._lost, timeout_s=timeout_s)
        self._publisher: Publisher | None = None
        self._tail: Tail | None = None
        self._moved: asyncio.Future[None] = self._loop.create_future()
        self._opening: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._ended = False

    @property
    def opening(self) -> bool:
        """Whether brokers are being connected to."""
        return self._opening is not None and not self._opening.done()

    async def open(self, brokers: Brokers, offset: int) -> None:
        """Use `brokers`, reading the control topic from `offset` on and events from now on; what was used before is let go.

        :raises BrokerUnavailableError: when they do not answer.
        """
        # Whoever asked may be cancelled; what was begun is finished, so that it can be let go.
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

    async def publish(self, topic: str, records: list[Record]) -> None:
        """Publish `records` and return when the brokers have them.

        :raises PublishError: when they have not.
        :raises QueueFullError: when too many wait already.
        """
        if self._publisher is None:
            raise PublishError("not connected yet")
        # The brokers that were left behind may never answer.
        publishing = asyncio.ensure_future(self._publisher.publish(topic, records))
        try:
            await asyncio.wait((publishing, self._moved), return_when=asyncio.FIRST_COMPLETED)
            if not publishing.done():
                raise PublishError(f"{topic}: the brokers were left before they answered")
            publishing.result()
        finally:
            publishing.cancel()

    async def close(self) -> None:
        """Stop reading and let everything go; what takes longer than a few seconds is left behind."""
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
            LOG.warning("%d Kafka clients did not end in time", len(waiting), extra={"action": "clients_left"})

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
            LOG.warning("a Kafka client did not end well: %r", error, extra={"action": "clients_left"})

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
