"""A client's subscription: what it is sent, what is queued for it, and what it has lost.

It gets live batches from its group and past ones from its catch-up; it sends them over the
connection of its client, or queues them. Only its own methods change it.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

import orjson

from mev.bus.kafka import Position
from mev.core.token_bucket import TokenBucket
from mev.realtime import messages, metrics
from mev.realtime.backpressure import QueueBudget
from mev.realtime.batch import (
    EncodedBatch,
    EncodedFrame,
    EncodedFrames,
    Encoding,
    FrameBatch,
    Span,
)
from mev.realtime.limits import HubLimits
from mev.realtime.link import Link
from mev.realtime.metrics import Loss
from mev.realtime.options import DeliveryMode, OnSlow, SubscriptionOptions
from mev.realtime.outbox import Outbox
from mev.realtime.positions import Positions
from mev.wire import frames, resume
from mev.wire.pb.stream_pb2 import Frame

_TAIL_BYTES = 140  # of a full tail, with a subscription id of 64 characters


class SubscriptionClient(Protocol):
    """The client of a subscription, as the subscription uses it."""

    link: Link
    encoding: Encoding
    closing: bool
    is_numbered: bool
    json_rate: TokenBucket | None

    @property
    def queue_share_bytes(self) -> int:
        """Bytes that each subscription of the client may queue."""

    def encode(self, batch: FrameBatch) -> EncodedBatch:
        """Return a batch in the client's encoding."""

    def is_ready(self) -> bool:
        """Return whether the connection takes more data."""

    def queue(self, subscription: "Subscription") -> None:
        """Drain a subscription for which events are queued."""

    def drain(self) -> None:
        """Send queued events while the connection accepts them."""

    def overflow(self) -> None:
        """Close the connection, because too much is queued for a lossless subscription."""

    def count_sent(self, events: int, size_bytes: int) -> None:
        """Count a sent batch."""

    def count_lost(self, events: int, why: Loss) -> None:
        """Count events that the client will not get."""


class SubscriptionHub(Protocol):
    """The hub of a subscription, as the subscription uses it."""

    limits: HubLimits
    log: str

    def kafka_topics(self, options: SubscriptionOptions) -> Sequence[str]:
        """Return the Kafka topics of a selection."""

    def offered(self, subscription: "Subscription") -> Positions:
        """Return the position after the live batches that a subscription has been offered."""


class Subscription:
    """One selection of events of a client, with its queue, its position and its counts.

    While it catches up, `behind` has the next offset of each partition that is not live yet.
    """

    def __init__(
        self,
        subscription_id: str,
        options: SubscriptionOptions,
        client: SubscriptionClient,
        hub: SubscriptionHub,
        budget: QueueBudget,
    ) -> None:
        self.id = subscription_id
        self.sent = 0
        """Total number of events sent."""
        self.dropped = 0
        """Total number of events dropped."""
        self.lost = 0
        """Events dropped since the last report to the client."""
        self._json_id = orjson.dumps(subscription_id)
        self._name_field = Frame(subscription=subscription_id).SerializeToString()
        self._client = client
        self._hub = hub
        self._limits = hub.limits
        self._outbox = Outbox(OnSlow.DROP_OLDEST, budget, client.encode, self._repack)
        self._empty = asyncio.Event()
        """Set while nothing is queued."""
        self._empty.set()
        self._behind: dict[Position, int] = {}
        self._dropped_newer = False
        """True if events were dropped that are newer than some in the outbox."""
        self._awaits_snapshot = False
        """True until its snapshot has been sent; live events are queued meanwhile."""
        self._reported_sent = 0
        """Number of sent events that was last reported outside of frames."""
        self._position_sent_s = asyncio.get_running_loop().time()
        """Time at which the client was last sent its position."""
        self.set_options(options)

    def set_options(self, options: SubscriptionOptions) -> None:
        """Set new options; queued events keep their place."""
        self.options = options
        self.kafka_topics = self._hub.kafka_topics(options)
        per_s, clock = options.max_rate, asyncio.get_running_loop().time
        own = TokenBucket(per_s, per_s, clock) if per_s else None
        self._rates = [rate for rate in (self._client.json_rate, own) if rate is not None]

    @property
    def queued(self) -> int:
        """Number of events that wait for the client."""
        return self._outbox.events

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait for the client."""
        return self._outbox.size_bytes

    @property
    def behind(self) -> Positions:
        """The next offset of each partition that is not live yet."""
        return self._behind

    # Positions.

    def unqueued(self) -> Positions:
        """Return the position after all frames that are queued for the client."""
        return {**self._hub.offered(self), **self._behind, **self._outbox.newest_starts()}

    def unsent(self) -> Positions:
        """Return the position of the first event that the client has not been sent."""
        return {**self.unqueued(), **self._outbox.encoded_starts()}

    def catch_up_from(self, positions: Positions) -> None:
        """Take no live events of `positions` until :meth:`make_live`."""
        self._behind = dict(positions)

    def advance(self, at: Position, offset: int) -> None:
        """Set the next offset of a partition that is not live yet."""
        self._behind[at] = offset

    def make_live(self, partitions: Iterable[Position]) -> None:
        """Take live events of `partitions` from now on."""
        for at in partitions:
            del self._behind[at]

    def offer(self, batch: FrameBatch) -> None:
        """Send or queue a live `batch`, without the partitions that are not live yet."""
        client, outbox, options = self._client, self._outbox, self.options
        if client.closing:
            return
        if self._behind:
            batch = batch.without(self._behind)
        if not outbox:
            self._dropped_newer = False
        is_datagram = options.delivery is DeliveryMode.DATAGRAM
        if self._rates and (options.on_slow is OnSlow.DROP_OLDEST or is_datagram):
            allowed = self._allowed(batch.count)
            self.lose(batch.count - allowed, Loss.MAX_RATE)
            self._dropped_newer |= allowed < batch.count and bool(outbox)
            batch = batch.newest(allowed)
        if not batch.count:
            return
        if is_datagram:
            self._send_datagrams(batch)
            return
        if outbox:
            client.drain()
        if outbox or not self._is_ready():
            self._queue(batch)
        else:
            self._send(client.encode(batch), 0)

    def offer_past(self, batch: FrameBatch) -> None:
        """Send or queue a `batch` of history, without dropping events.

        History is read no faster than the client accepts it.
        """
        if self._client.closing:
            return
        encoded = self._client.encode(batch)
        if self._outbox or not self._is_ready():
            self._outbox.append(encoded, asyncio.get_running_loop().time())
            self._wait()
        else:
            self._send(encoded, 0)

    def await_snapshot(self) -> None:
        """Queue live events until :meth:`send_snapshot`."""
        self._awaits_snapshot = True

    def send_snapshot(self, encoded_batches: Sequence[EncodedBatch]) -> None:
        """Send the snapshot, and then what was queued meanwhile."""
        link = self._client.link
        before, left = 0, sum(encoded.count for encoded in encoded_batches)
        for encoded in encoded_batches:
            left -= encoded.count
            if isinstance(encoded, EncodedFrames):
                place = Frame(sequence=before, snapshot_left=left).SerializeToString()
                link.send_frame(encoded.frame, self._name_field + place, stale=False)
            else:
                link.send_text(encoded.snapshot(self._json_id, left))
            before += encoded.count
        self._awaits_snapshot = False
        self._client.drain()

    def send_next(self) -> bool:
        """Send the next queued batch if the connection accepts it; return whether it did."""
        sends = bool(self._outbox) and self._is_ready()
        if sends:
            self._send_queued()
        if not self._outbox:
            self._empty.set()
        return sends

    async def drained(self) -> None:
        """Wait until nothing is queued."""
        await self._empty.wait()

    def clear(self) -> int:
        """Drop the queued events; return their number."""
        return self._outbox.clear()

    def lose(self, count: int, why: Loss) -> None:
        """Count events that the client will not get."""
        if count:
            self.lost += count
            self.dropped += count
            self._client.count_lost(count, why)

    def report(self, *, final: bool = False) -> None:
        """Report losses and sent counts that no later batch has reported.

        The number of sent events is reported where frames may be lost. The `final` report drops
        queued events if newer ones have been dropped already: they could not be read again without
        these.
        """
        if final and self._dropped_newer:
            self.lose(self.clear(), Loss.DROP_OLDEST)
        if self._outbox and not final:
            return
        if self._client.is_numbered:
            if self._reported_sent != self.sent or self.lost:
                self._client.link.send_text(
                    messages.progress(self.id, self.sent, self.lost, self.dropped)
                )
                self._reported_sent, self.lost = self.sent, 0
        elif self.lost:
            self._send(self._client.encode(self._position()), 0)
        if self._is_position_due():
            self._send_position()

    def _is_ready(self) -> bool:
        if self._awaits_snapshot or not self._client.is_ready():
            return False
        return not self._rates or all(rate.level() > 0 for rate in self._rates)

    def _allowed(self, count: int) -> int:
        """Return how many of `count` events the rates allow now."""
        return max(0, min(count, *(int(rate.level()) for rate in self._rates)))

    def _is_position_due(self) -> bool:
        """Return whether the client's cursor may be old, as a filter delays the next batch."""
        options = self.options
        if not options.filter or options.delivery is DeliveryMode.DATAGRAM or self._behind:
            return False
        passed_s = asyncio.get_running_loop().time() - self._position_sent_s
        return passed_s >= self._limits.position_s

    def _send_position(self) -> None:
        self._position_sent_s = asyncio.get_running_loop().time()
        if self._client.encoding is Encoding.JSON:
            self._send(self._position().text, 0)
            return
        positions = self.unsent()
        token = resume.encode(self._hub.log, positions, {at[0] for at in positions})
        payload = frames.encode_positions(positions, time.time_ns(), token)
        self._send(EncodedFrames(0, EncodedFrame(payload), {}), 0)

    def _position(self) -> FrameBatch:
        """Return a batch without events, whose cursor is the client's current position."""
        positions = self.unsent()
        return FrameBatch(self._hub.log, {at[0] for at in positions}, positions)

    def _queue(self, batch: FrameBatch) -> None:
        outbox, policy = self._outbox, self.options.on_slow
        loop = asyncio.get_running_loop()
        if outbox.policy is not policy:
            outbox.change(policy, self._limits.batch_max_size)
        superseded = outbox.put(batch, loop.time())
        self.lose(superseded, Loss.CONFLATE)
        self._dropped_newer |= superseded > 0
        if policy is not OnSlow.LOSSLESS:
            self.lose(outbox.trim(self._client.queue_share_bytes), Loss.DROP_OLDEST)
        elif self._exceeds_share():
            # Deferred: by then all clients have been offered this batch, and every cursor is exact.
            loop.call_soon(self._overflow)
        self._wait()

    def _wait(self) -> None:
        self._empty.clear()
        self._client.queue(self)

    def _exceeds_share(self) -> bool:
        return self._outbox.exceeds(self._client.queue_share_bytes)

    def _overflow(self) -> None:
        # The queue of a subscription that has ended meanwhile is empty.
        if self.options.on_slow is OnSlow.LOSSLESS and self._exceeds_share():
            self._client.overflow()

    def _repack(self, spans: list[Span]) -> FrameBatch:
        return FrameBatch(self._hub.log, self.kafka_topics, self.unqueued(), spans, complete=False)

    def _send_queued(self) -> None:
        most = self._limits.batch_max_size
        if self._rates:
            most = max(1, self._allowed(most))
        waiting = self._outbox.take(most)
        if waiting is not None:
            lag_s = asyncio.get_running_loop().time() - waiting.since_s
            metrics.QUEUE_LATENCY.observe(lag_s)
            self._send(waiting.encoded, max(1, int(lag_s * 1000)))

    # Sending.

    def _send(self, encoded: EncodedBatch, lag_ms: int) -> None:
        link, queued = self._client.link, self._outbox.events
        if isinstance(encoded, EncodedFrames):
            frame = encoded.frame
            if self.lost or queued or lag_ms or self._client.is_numbered:
                tail = self._tail(queued, lag_ms)
            else:  # clients that keep up share the same bytes
                frame, tail = frame.named(self._name_field)
            link.send_frame(frame, tail, stale=self.options.on_slow is not OnSlow.LOSSLESS)
            size = len(frame.payload) + len(tail)
        else:
            text = encoded.message(self._json_id, self.lost, self.dropped, queued, lag_ms)
            link.send_text(text, encoded.resume)
            size = len(text)
        self._count(encoded.count, size)

    def _send_datagrams(self, batch: FrameBatch) -> None:
        link = self._client.link
        limit = link.datagram_bytes()
        for encoded in batch.datagrams(limit - _TAIL_BYTES):
            tail = self._tail(0, 0)
            if encoded.size + len(tail) <= limit:
                link.send_datagram(encoded.frame.payload + tail)
            elif self._is_ready():
                link.send_frame(encoded.frame, tail, stale=True)
            else:
                self.lose(encoded.count, Loss.DROP_OLDEST)
                continue
            self._count(encoded.count, encoded.size + len(tail))

    def _tail(self, queued: int, lag_ms: int) -> bytes:
        """Return the subscriber-specific fields to append to a shared frame."""
        tail = Frame(
            dropped=self.lost,
            queued=queued,
            lag_ms=lag_ms,
            sequence=self.sent if self._client.is_numbered else 0,
            dropped_total=self.dropped,
        )
        return self._name_field + tail.SerializeToString()

    def _count(self, events: int, size_bytes: int) -> None:
        self.lost = 0
        self.sent += events
        for rate in self._rates:
            rate.spend(events)
        self._client.count_sent(events, size_bytes)
