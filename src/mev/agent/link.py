"""The agent's connection to the brokers: the control topic and events in, reports and decisions out.

The only place with threads. What they read waits for the event loop a few batches at a time, so that a busy agent slows the reading and
not the memory.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from mev.agent.clock import Clock
from mev.bus.batch import Batch
from mev.bus.errors import PublishError
from mev.bus.follow import Followed, Follower
from mev.bus.kafka import Brokers
from mev.bus.publisher import Publisher
from mev.bus.tail import Tail
from mev.wire.registry import Record
from mev.wire.topics import CONTROL

T = TypeVar("T")
_WAITING_BATCHES = 4
_QUEUE_MESSAGES = 100_000
_QUEUE_KBYTES = 65_536
_PUBLISH_TIMEOUT_S = 3.0
_LINGER_MS = 0.5


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
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self, brokers: Brokers, offset: int) -> None:
        """Use `brokers`, reading the control topic from `offset` on and events from now on; what was used before is let go.

        :raises BrokerUnavailableError: when they do not answer.
        """
        await asyncio.to_thread(self._follower.follow, brokers, offset)
        before, self._publisher = self._publisher, self._new_publisher(brokers)
        moved, self._moved = self._moved, self._loop.create_future()
        moved.set_result(None)
        if before is not None:
            self._let_go(before)
        if self._tail is not None:
            tail, self._tail = self._tail, None
            await asyncio.to_thread(tail.close)
        if self._topics:
            tail = Tail(brokers, self._topics, self.events.put, timeout_s=self._timeout_s)
            await asyncio.to_thread(tail.start)
            self._tail = tail

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
        """Stop reading and let everything go."""
        self._control.close()
        self.events.close()
        await asyncio.to_thread(self._follower.close)
        if self._tail is not None:
            await asyncio.to_thread(self._tail.close)
        if self._publisher is not None:
            self._let_go(self._publisher)
        await asyncio.gather(*self._closing)

    def _new_publisher(self, brokers: Brokers) -> Publisher:
        return Publisher(
            brokers,
            queue_messages=_QUEUE_MESSAGES,
            queue_kbytes=_QUEUE_KBYTES,
            linger_ms=_LINGER_MS,
            timeout_s=_PUBLISH_TIMEOUT_S,
        )

    def _let_go(self, publisher: Publisher) -> None:
        task = asyncio.create_task(asyncio.to_thread(publisher.close))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _deliver(self, followed: Followed) -> None:
        self._control.put((followed, self._clock()))

    def _lost(self, reason: str) -> None:
        self._loop.call_soon_threadsafe(self._down, reason)
