"""State machine of one subscription, without I/O: requests, answers and waiting batches.

The state outlives connections: a received frame advances its cursor, the next connection resumes
there, and batches that the user has not read stay.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from mev.client.batch import Batch, Gap, steps_of
from mev.client.cursor import Cursor, Resume, Start, wire_start
from mev.client.errors import RefusedError, StreamError
from mev.core.errors import MevError
from mev.wire.pb.stream_pb2 import Frame

OnSlow = Literal["drop_oldest", "conflate", "lossless"]
Message = Mapping[str, Any]
_ASK_AGAIN = frozenset({"rate_limited", "accounts_unavailable", "unavailable", "too_many_replays"})
_ASK_AGAIN_S = 1.0
_WEIGHT = 1024  # memory of a batch, in addition to its bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionOptions:
    """Event types, filter and flow control of a subscription."""

    topics: tuple[str, ...]
    filter: tuple[str, ...] = ()
    on_slow: OnSlow = "drop_oldest"
    max_rate: int | None = None

    def wire(self) -> dict[str, Any]:
        """Return the options as fields of `subscribe`."""
        fields: dict[str, Any] = {"topics": list(self.topics), "on_slow": self.on_slow}
        if self.filter:
            fields["filter"] = list(self.filter)
        if self.max_rate is not None:
            fields["max_rate"] = self.max_rate
        return fields


class Backlog:
    """Number of bytes of a stream that wait for the user; above `limit` the socket is not read."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._awaited = 0
        self._changed = asyncio.Event()

    def add(self, size: int) -> None:
        """Add the size of an arrived batch; subtract with a negative size."""
        self._used += size
        self._changed.set()

    @contextmanager
    def answer_awaited(self) -> Iterator[None]:
        """Suspend the limit while the user waits for an answer that follows unread batches."""
        self._awaited += 1
        self._changed.set()
        try:
            yield
        finally:
            self._awaited -= 1

    async def room(self) -> None:
        """Wait until the size is within the limit."""
        while self._used > self._limit and not self._awaited:
            self._changed.clear()
            await self._changed.wait()


class SubscriptionState:
    """State of one subscription."""

    def __init__(
        self,
        subscription_id: str,
        options: SubscriptionOptions,
        start: Start,
        backlog: Backlog,
        *,
        snapshot: bool = False,
    ) -> None:
        self.id = subscription_id
        self.options = options
        self.topics: tuple[str, ...] = ()
        self.active = False  # the server sends to it over the current connection
        self.given = start if isinstance(start, Cursor) else Cursor()  # cursor of the user
        # The same position as the server's token.
        self.token = start.token if isinstance(start, Resume) else ""
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked = False  # a `subscribe` is in flight
        self._start = start
        self._lacks_snapshot = snapshot  # it is asked for, and has not come whole
        self._received: Cursor | None = None  # where the connection is
        self._token = ""  # the same place as the server's token
        self._dropped = 0  # as the server counts over this connection
        self._wanted: tuple[Message, asyncio.Future[None]] | None = None
        self._leaving: asyncio.Future[int] | None = None
        self._backlog = backlog
        self._waiting: deque[Batch] = deque()
        self._arrived = asyncio.Event()
        self._end: MevError | None = None
        self.ended = False

    def request(self) -> Message | None:
        """Return the pending request: subscribe, resume or update."""
        if self.ended or self._asked:
            return None
        if self.active:
            return {"op": "update", "id": self.id, **self._wanted[0]} if self._wanted else None
        self._asked = True
        options = self.options.wire()
        if self._lacks_snapshot:
            return {"op": "subscribe", "id": self.id, **options, "snapshot": True}
        if self._received is None:
            return {"op": "subscribe", "id": self.id, **options, "from": wire_start(self._start)}
        # Patterns stay expanded as they were: the cursor refers to these event types.
        return {
            "op": "subscribe",
            "id": self.id,
            **options,
            "topics": self.topics,
            "from": wire_start(self._received),
        }

    def change(self, changes: Message) -> asyncio.Future[None]:
        """Request changed options; return a future that ends when they are active or refused."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted = changes, done
        return done

    def leave(self) -> asyncio.Future[int]:
        """Request the end of the subscription.

        Return a future with the number of unreported losses.
        """
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_future()
        return self._leaving

    def disconnected(self) -> None:
        """Record that the connection is closed."""
        self.active = self._asked = False
        if self._leaving is not None:
            self._left(0)

    def take_final_cursor(self, cursor: Cursor) -> None:
        """Merge the final cursor that the server sent before closing."""
        if self._received is not None:
            self._received = self._received.merged(cursor)

    def answer(self, message: Message) -> float | None:
        """Process an answer of the server.

        Return the delay until the next :meth:`request`, or None.
        """
        self._asked = False
        match message["op"]:
            case "subscribed":
                self._subscribed(message)
                return 0.0 if self._wanted else None
            case "updated":
                self._updated(message)
            case "unsubscribed":
                self._left(int(message.get("dropped", 0)))
            case "error":
                return self._refused(message)
        return None

    def take(self, frame: Frame, size: int) -> None:
        """Take a frame."""
        snapshot_left = frame.snapshot_left if frame.HasField("snapshot_left") else None
        before = Cursor() if self._received is None else self._received
        if snapshot_left is None:
            self._received, self._token = before.moved(steps_of(frame)), frame.resume
        else:
            self._received, self._lacks_snapshot = before, snapshot_left > 0
        self._put(
            Batch(
                subscription=self.id,
                cursor=self._received,
                resume=self._token,
                dropped=self._newly_dropped(frame),
                queued=frame.queued,
                lag_ms=frame.lag_ms,
                sent_at_ns=frame.sent_at_ns,
                slices=tuple(frame.slices),
                size=size,
                snapshot_left=snapshot_left,
            )
        )

    def _newly_dropped(self, frame: Frame) -> int:
        """Return the losses since the last frame; older servers send no total."""
        before, self._dropped = self._dropped, frame.dropped_total or self._dropped + frame.dropped
        return self._dropped - before

    async def next(self) -> Batch | None:
        """Return the oldest unread batch, or None after the end."""
        while not self._waiting:
            if self._end is not None:
                raise self._end
            if self.ended:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        batch = self._waiting.popleft()
        self._backlog.add(-batch.size - _WEIGHT)
        self.given, self.token = batch.cursor, batch.resume
        return batch

    def end(self, error: MevError | None = None) -> None:
        """End the subscription: unread batches stay readable, then `error` is raised."""
        if self.ended:
            return
        self.ended, self._end, self.active = True, error, False
        self._arrived.set()
        reason = error or StreamError("the stream was closed")
        for future in (self.started, self._wanted[1] if self._wanted else None):
            if future is not None and not future.done():
                future.set_exception(reason)
                future.exception()  # mark the exception as retrieved
        if self._leaving is not None and not self._leaving.done():
            self._leaving.set_result(0)

    def _subscribed(self, message: Message) -> None:
        start = Cursor.of(message.get("cursor"), message.get("log"))
        first = self._received is None
        self.active, self._received, self._dropped = True, start, 0
        self.topics = tuple(message.get("topics", ()))
        self._token = str(message.get("resume", ""))
        if first:
            self.given, self.token = start, self._token
        if message.get("start") in {"gap", "reset"}:
            self._put(
                Batch(
                    subscription=self.id,
                    cursor=start,
                    resume=self._token,
                    gaps=tuple(_gaps(message.get("gaps", {}))),
                    reset=message["start"] == "reset",
                )
            )
        if not self.started.done():
            self.started.set_result(None)

    def _updated(self, message: Message) -> None:
        self.topics = tuple(message.get("topics", ()))
        if self._received is not None:
            self._received = self._received.retained(
                self.topics, Cursor.of(message.get("cursor"), message.get("log"))
            )
        if self._wanted is not None:
            (changes, done), self._wanted = self._wanted, None
            self.options = replace(self.options, **changes)
            if not done.done():  # the caller may have cancelled
                done.set_result(None)

    def _refused(self, message: Message) -> float | None:
        error = refusal(message)
        if self._leaving is not None:
            self._left(0)
        elif not self.active:
            if error.reason in _ASK_AGAIN or error.wait_s is not None:
                return error.wait_s or _ASK_AGAIN_S
            self.end(error)
        elif self._wanted is not None:
            (_, done), self._wanted = self._wanted, None
            if not done.done():
                done.set_exception(error)
        return None

    def _left(self, dropped: int) -> None:
        if self._leaving is not None and not self._leaving.done():
            self._leaving.set_result(dropped)
        self._backlog.add(-sum(batch.size + _WEIGHT for batch in self._waiting))
        self._waiting.clear()
        self.end()

    def _put(self, batch: Batch) -> None:
        self._waiting.append(batch)
        self._backlog.add(batch.size + _WEIGHT)
        self._arrived.set()


def refusal(message: Message) -> RefusedError:
    """Return the exception for an `error` message."""
    return RefusedError(
        str(message.get("detail") or message.get("code") or "refused"),
        reason=str(message.get("code", "")),
        field=message.get("field"),
        retry_after_s=message.get("retry_after_s"),
    )


def _gaps(document: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Iterator[Gap]:
    for topic, of_topic in document.items():
        for partition, gone in of_topic.items():
            yield Gap(topic, int(partition), gone["from"], gone["to"])
