"""One client of the hub: its connection, its subscriptions, and its share of the limits.

Two buffers are between a batch and the client's kernel: the connection's own, filled up to the soft
limit, and then the outbox of each subscription. A slow client costs references, and does not delay
other clients.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from mev.core.token_bucket import TokenBucket
from mev.realtime.batch import EncodedBatch, Encoding, FrameBatch
from mev.realtime.errors import SnapshotTooLargeError
from mev.realtime.limits import HubLimits
from mev.realtime.link import CloseCode, Link
from mev.realtime.metrics import HubMetrics, Loss
from mev.realtime.options import OnSlow
from mev.realtime.subscription import Subscription


class ClientHub(Protocol):
    """The hub of a client, as the client uses it."""

    def fell_behind(self, client: "Client") -> None:
        """Register `client` as slow."""

    def overflowed(self, client: "Client") -> None:
        """Close a connection that is too slow for its lossless subscription."""


class Client:
    """A connection with its subscriptions; used by the event-loop thread only."""

    def __init__(
        self,
        client_id: int,
        link: Link,
        hub: ClientHub,
        *,
        encoding: Encoding,
        remote: str,
        limits: HubLimits,
        hub_metrics: HubMetrics,
    ) -> None:
        self.id = client_id
        self.link = link
        self.encoding = encoding
        self.remote = remote
        self.since_s = time.time()
        self.principal: str | None = None
        self.quota: TokenBucket | None = None
        """Byte rate of the principal, over all its connections."""
        self.subscriptions: dict[str, Subscription] = {}
        self.closing = False
        self.close_code: int | None = None
        self.sent = 0
        self.dropped = 0
        self.heard = 0
        """Messages received from the peer; it grows while the peer is alive."""
        self.is_numbered = link.transport == "webtransport"
        """True if frames may be lost, and therefore have numbers."""
        per_s, clock = limits.json_events_per_s, asyncio.get_running_loop().time
        is_json = encoding is Encoding.JSON
        self.json_rate = TokenBucket(per_s, per_s, clock) if is_json else None
        self._hub = hub
        self._limits = limits
        self._buffer_bytes = limits.soft_buffer_bytes + limits.queue_bytes
        self._hub_metrics = hub_metrics
        self._queues: dict[Subscription, None] = {}
        """The subscriptions for which events are queued."""

    def encode(self, batch: FrameBatch) -> EncodedBatch:
        """Return a batch in the client's encoding."""
        return batch.frame if self.encoding is Encoding.PROTOBUF else batch.text

    def answer(self, message: bytes) -> None:
        """Send a control message ahead of queued events.

        A client that sends requests but does not read the answers is disconnected.
        """
        if self.link.backlog() > self._buffer_bytes:
            self.link.abort(
                CloseCode.TRY_AGAIN_LATER, "messages were sent and their answers not read"
            )
        else:
            self.link.send_text(message)

    def check_snapshot(self, encoded_batches: Sequence[EncodedBatch]) -> None:
        """Check that the connection's buffers can hold a snapshot.

        :raises SnapshotTooLargeError: if they cannot.
        """
        room = self._buffer_bytes
        if self.link.backlog() + sum(encoded.size for encoded in encoded_batches) > room:
            events = sum(encoded.count for encoded in encoded_batches)
            raise SnapshotTooLargeError(
                f"the snapshot has {events} events of more than {room} bytes "
                "(WS_BUFFER_BYTES and 1 MiB); narrow topics or filter",
                field="snapshot",
            )

    def report(self, *, final: bool = False) -> None:
        """Report losses and sent counts of the subscriptions; see :meth:`Subscription.report`."""
        for subscription in self.subscriptions.values():
            subscription.report(final=final)

    # Queues.

    @property
    def is_behind(self) -> bool:
        """True if events are queued."""
        return bool(self._queues)

    @property
    def queue_share_bytes(self) -> int:
        """Bytes that each subscription may queue."""
        return self._limits.queue_bytes // max(1, len(self.subscriptions))

    def queued_bytes(self) -> int:
        """Return the bytes queued for all subscriptions."""
        return sum(subscription.queued_bytes for subscription in self._queues)

    def queue(self, subscription: Subscription) -> None:
        """Drain a subscription for which events are queued."""
        self._queues[subscription] = None
        self._hub.fell_behind(self)

    def drain(self) -> None:
        """Send queued batches while the connection accepts them, one per subscription in turn."""
        moved = True
        while moved:
            moved = False
            for subscription in tuple(self._queues):
                moved |= subscription.send_next()
                if not subscription.queued:
                    self._queues.pop(subscription, None)

    def shed(self) -> None:
        """Drop everything queued, because the process exceeds its budget.

        A client with a lossless subscription is disconnected instead.
        """
        if any(subscription.options.on_slow is OnSlow.LOSSLESS for subscription in self._queues):
            self.overflow()
            return
        for subscription in self._queues:
            subscription.lose(subscription.clear(), Loss.BUDGET)

    def overflow(self) -> None:
        """Close the connection, because too much is queued for a lossless subscription."""
        self._hub.overflowed(self)

    def forget(self, subscription: Subscription) -> int:
        """Drop the queued events of a subscription that ends; return their number."""
        self._queues.pop(subscription, None)
        return subscription.clear()

    # Limits and counts.

    def is_ready(self) -> bool:
        """Return whether the connection takes more data."""
        return self.link.backlog() <= self._limits.soft_buffer_bytes and (
            self.quota is None or self.quota.level() > 0
        )

    def count_sent(self, events: int, size_bytes: int) -> None:
        """Count a sent batch."""
        self.sent += events
        if self.quota is not None:
            self.quota.spend(size_bytes)
        hub_metrics = self._hub_metrics
        hub_metrics.events_sent += events
        hub_metrics.frames_sent += 1
        hub_metrics.bytes_sent += size_bytes

    def count_lost(self, events: int, why: Loss) -> None:
        """Count events that the client will not get."""
        self.dropped += events
        self._hub_metrics.events_dropped[why] += events
