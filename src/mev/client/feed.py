"""One subscription as the connection sees it: what to ask, what was answered, what waits for the user. It does no I/O.

A feed outlives connections. What it received moves its cursor on, and the next connection begins there; what was received and not yet
taken by the user stays.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from mev.client.batch import Batch, Gap, steps_of
from mev.client.cursor import Cursor, Start, wire_start
from mev.client.errors import RefusedError, StreamError
from mev.core.errors import MevError
from mev.wire.pb.stream_pb2 import Frame

OnSlow = Literal["drop_oldest", "conflate", "lossless"]
Message = Mapping[str, Any]
_ASK_AGAIN = frozenset({"rate_limited", "accounts_unavailable", "unavailable", "too_many_replays"})
_ASK_AGAIN_S = 1.0
_WEIGHT = 1024  # of a batch in memory, beside its bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What is wanted, and at what pace."""

    topics: tuple[str, ...]
    filter: tuple[str, ...] = ()
    on_slow: OnSlow = "drop_oldest"
    max_rate: int | None = None

    def wire(self) -> dict[str, Any]:
        """Return the fields of `subscribe` that say so."""
        fields: dict[str, Any] = {"topics": list(self.topics), "on_slow": self.on_slow}
        if self.filter:
            fields["filter"] = list(self.filter)
        if self.max_rate is not None:
            fields["max_rate"] = self.max_rate
        return fields


class Backlog:
    """How many bytes wait for the user, over all feeds of a stream: above `limit` the socket is not read."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._awaited = 0
        self._changed = asyncio.Event()

    def add(self, size: int) -> None:
        """Count what arrived, or with a negative size what was taken."""
        self._used += size
        self._changed.set()

    @contextmanager
    def answer_awaited(self) -> Iterator[None]:
        """Read on whatever waits: the user asked something and takes nothing before the answer, which comes behind it."""
        self._awaited += 1
        self._changed.set()
        try:
            yield
        finally:
            self._awaited -= 1

    async def room(self) -> None:
        """Wait until there is room."""
        while self._used > self._limit and not self._awaited:
            self._changed.clear()
            await self._changed.wait()


class Feed:
    """The state of one subscription."""

    def __init__(self, feed_id: str, terms: Terms, start: Start, backlog: Backlog) -> None:
        self.id = feed_id
        self.terms = terms
        self.topics: tuple[str, ...] = ()
        self.active = False  # the server sends to it, over the connection there is now
        self.given = start if isinstance(start, Cursor) else Cursor()  # where the user is
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked = False  # a `subscribe` is on its way
        self._start = start
        self._received: Cursor | None = None  # where the connection is
        self._wanted: tuple[Message, asyncio.Future[None]] | None = None
        self._leaving: asyncio.Future[int] | None = None
        self._backlog = backlog
        self._waiting: deque[Batch] = deque()
        self._arrived = asyncio.Event()
        self._end: MevError | None = None
        self.ended = False

    def request(self) -> Message | None:
        """Return the message that is due: one that begins it, resumes it, or changes its terms."""
        if self.ended or self._asked:
            return None
        if self.active:
            return {"op": "update", "id": self.id, **self._wanted[0]} if self._wanted else None
        self._asked = True
        terms = self.terms.wire()
        if self._received is None:
            return {"op": "subscribe", "id": self.id, **terms, "from": wire_start(self._start)}
        # Patterns stay what they were when it began: the cursor is of these types.
        return {"op": "subscribe", "id": self.id, **terms, "topics": self.topics, "from": wire_start(self._received)}

    def change(self, changes: Message) -> asyncio.Future[None]:
        """Have its terms changed; return what is done when they are in force, or refused."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted = changes, done
        return done

    def leave(self) -> asyncio.Future[int]:
        """Have it ended; return what is done then, with the losses that were not told before."""
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_future()
        return self._leaving

    def disconnected(self) -> None:
        """Take note that the connection is gone."""
        self.active = self._asked = False
        if self._leaving is not None:
            self._left(0)

    def farewell(self, cursor: Cursor) -> None:
        """Take the server's word for how far it got."""
        if self._received is not None:
            self._received = self._received.past(cursor)

    def answer(self, message: Message) -> float | None:
        """Take an answer of the server; return after how many seconds the next :meth:`request` is due, if one is."""
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
        self._received = (Cursor() if self._received is None else self._received).moved(steps_of(frame))
        self._put(
            Batch(
                subscription=self.id,
                cursor=self._received,
                dropped=frame.dropped,
                queued=frame.queued,
                lag_ms=frame.lag_ms,
                sent_at_ns=frame.sent_at_ns,
                slices=tuple(frame.slices),
                size=size,
            )
        )

    async def next(self) -> Batch | None:
        """Return the oldest batch that was not taken, None after the end."""
        while not self._waiting:
            if self._end is not None:
                raise self._end
            if self.ended:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        batch = self._waiting.popleft()
        self._backlog.add(-batch.size - _WEIGHT)
        self.given = batch.cursor
        return batch

    def end(self, error: MevError | None = None) -> None:
        """End it: what waits can still be taken, then comes `error`."""
        if self.ended:
            return
        self.ended, self._end, self.active = True, error, False
        self._arrived.set()
        reason = error or StreamError("the stream was closed")
        for future in (self.started, self._wanted[1] if self._wanted else None):
            if future is not None and not future.done():
                future.set_exception(reason)
                future.exception()  # nobody has to ask for it
        if self._leaving is not None and not self._leaving.done():
            self._leaving.set_result(0)

    def _subscribed(self, message: Message) -> None:
        start = Cursor.of(message.get("cursor"), message.get("log"))
        first = self._received is None
        self.active, self._received = True, start
        self.topics = tuple(message.get("topics", ()))
        if first:
            self.given = start
        if message.get("start") in {"gap", "reset"}:
            self._put(
                Batch(subscription=self.id, cursor=start, gaps=tuple(_gaps(message.get("gaps", {}))), reset=message["start"] == "reset")
            )
        if not self.started.done():
            self.started.set_result(None)

    def _updated(self, message: Message) -> None:
        self.topics = tuple(message.get("topics", ()))
        if self._received is not None:
            self._received = self._received.retained(self.topics, Cursor.of(message.get("cursor"), message.get("log")))
        if self._wanted is not None:
            (changes, done), self._wanted = self._wanted, None
            self.terms = replace(self.terms, **changes)
            if not done.done():  # whoever waited may have gone
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
    """Return an `error` message as what is raised."""
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
