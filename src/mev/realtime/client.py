"""One connection's side of the hub: its subscriptions, its bounded buffer, what it lost.

Two buffers stand between a batch and the client's kernel: the transport's own, filled up to the soft limit, and behind it a queue of
shared parcels that drops its oldest. A client that falls behind costs references, and delays nobody.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import orjson

from mev.realtime.batch import Batch, Parcel
from mev.realtime.limits import Limits
from mev.realtime.tally import Encoding, Tally


class Link(Protocol):
    """A connection as the hub needs it; nothing here blocks or raises."""

    def write(self, data: bytes | memoryview) -> None:
        """Hand bytes over, to be sent after those before them."""

    def backlog(self) -> int:
        """Return how many bytes the kernel has not taken yet."""

    def ping(self) -> None:
        """Ask for a sign of life."""

    def close(self, code: int, reason: str) -> None:
        """Say goodbye and let the peer answer."""

    def abort(self) -> None:
        """Drop the connection and what waits in it."""


class Subscription:
    """A client's interest in a set of topics, under the client's own name for it."""

    __slots__ = ("client", "id", "json_id", "lost", "topics")

    def __init__(self, client: "Client", subscription_id: str, topics: frozenset[str]) -> None:
        self.client = client
        self.id = subscription_id
        self.json_id = orjson.dumps(subscription_id)
        self.topics = topics
        self.lost = 0
        """Events dropped since this subscription was last told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What there is to know of an open connection."""

    id: int
    transport: str
    encoding: str
    remote: str
    principal: str | None
    subscriptions: dict[str, tuple[str, ...]]
    sent: int
    dropped: int
    queued_bytes: int


class Client:
    """A connection with its subscriptions; the event-loop thread alone may call it."""

    def __init__(self, client_id: int, link: Link, *, encoding: Encoding, remote: str, limits: Limits, tally: Tally) -> None:
        self.id = client_id
        self.link = link
        self.encoding = encoding
        self.remote = remote
        self.principal: str | None = None
        self.subscriptions: dict[str, Subscription] = {}
        self.closing = False
        self.heard = 0
        """Frames the peer has sent: it grows while the peer is alive."""
        self._limits = limits
        self._tally = tally
        self._queue: deque[tuple[Subscription, Parcel]] = deque()
        self._queued_bytes = 0
        self._bytes_sent = 0
        self._sent = 0
        self._dropped = 0
        self._allowance = _Allowance(limits.json_events_per_s)

    def offer(self, subscription: Subscription, batch: Batch) -> None:
        """Send `batch`, or queue it behind what waits already."""
        if self.encoding is Encoding.PROTOBUF:
            self._deliver(subscription, batch.frame())
            return
        allowed = self._allowance.take(batch.count, asyncio.get_running_loop().time())
        self._lose(subscription, batch.count - allowed)
        if allowed:
            self._deliver(subscription, batch.text(allowed))

    def answer(self, message: bytes) -> None:
        """Send a control message ahead of what is queued; a client that asks and never reads is disconnected."""
        if self.link.backlog() > self._limits.soft_buffer_bytes + self._limits.queue_bytes:
            self.link.abort()
        else:
            self._write(message)

    def drain(self) -> None:
        """Move queued parcels on, as far as the transport takes them."""
        while self._queue and self.link.backlog() <= self._limits.soft_buffer_bytes:
            subscription, parcel = self._queue.popleft()
            self._queued_bytes -= parcel.size
            self._send(subscription, parcel)

    def tell_losses(self) -> None:
        """Report losses that no later batch came to report."""
        if self._queue:
            return
        for subscription in self.subscriptions.values():
            if subscription.lost:
                empty = Batch()
                self._deliver(subscription, empty.frame() if self.encoding is Encoding.PROTOBUF else empty.text(0))

    def forget(self, subscription: Subscription) -> int:
        """Remove what is queued for `subscription`; return how many events it lost and has not been told of."""
        kept = deque(entry for entry in self._queue if entry[0] is not subscription)
        self._lose(subscription, sum(parcel.count for owner, parcel in self._queue if owner is subscription))
        self._queue = kept
        self._queued_bytes = sum(parcel.size for _, parcel in kept)
        return subscription.lost

    def taken_bytes(self) -> int:
        """Return how many bytes the kernel has taken in all: it stands still while the peer reads nothing."""
        return self._bytes_sent - self.link.backlog()

    def describe(self) -> Connection:
        """Return what there is to know of the connection now."""
        return Connection(
            id=self.id,
            transport="websocket",
            encoding=self.encoding.value,
            remote=self.remote,
            principal=self.principal,
            subscriptions={name: tuple(sorted(subscription.topics)) for name, subscription in self.subscriptions.items()},
            sent=self._sent,
            dropped=self._dropped,
            queued_bytes=self._queued_bytes + self.link.backlog(),
        )

    def _deliver(self, subscription: Subscription, parcel: Parcel) -> None:
        if self._queue:
            self.drain()
        if self._queue or self.link.backlog() > self._limits.soft_buffer_bytes:
            self._enqueue(subscription, parcel)
        else:
            self._send(subscription, parcel)

    def _enqueue(self, subscription: Subscription, parcel: Parcel) -> None:
        self._queue.append((subscription, parcel))
        self._queued_bytes += parcel.size
        while self._queued_bytes > self._limits.queue_bytes and len(self._queue) > 1:
            loser, lost = self._queue.popleft()
            self._queued_bytes -= lost.size
            self._lose(loser, lost.count)

    def _send(self, subscription: Subscription, parcel: Parcel) -> None:
        before = self._bytes_sent
        for part in parcel.message(subscription.json_id, subscription.lost):
            self._write(part)
        subscription.lost = 0
        self._sent += parcel.count
        tally = self._tally
        tally.events_sent += parcel.count
        tally.frames_sent += 1
        tally.bytes_sent += self._bytes_sent - before

    def _write(self, data: bytes | memoryview) -> None:
        self._bytes_sent += len(data)
        self.link.write(data)

    def _lose(self, subscription: Subscription, count: int) -> None:
        subscription.lost += count
        self._dropped += count
        self._tally.events_dropped += count


class _Allowance:
    """A token bucket that holds one second's worth."""

    __slots__ = ("_at", "_left", "_per_s")

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._left = float(per_s)
        self._at = 0.0

    def take(self, count: int, now: float) -> int:
        """Return how many of `count` are granted at time `now`."""
        self._left = min(self._per_s, self._left + (now - self._at) * self._per_s)
        self._at = now
        granted = min(count, int(self._left))
        self._left -= granted
        return granted
