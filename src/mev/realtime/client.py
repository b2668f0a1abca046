"""One connection's side of the hub: its subscriptions, what waits for it, what it lost.

Two buffers stand between a batch and the client's kernel: the connection's own, filled up to the soft limit, and behind it the outbox of
each subscription. A client that falls behind costs references, and delays nobody.
"""

import asyncio
import time
from typing import Protocol

from mev.realtime import messages, stages
from mev.realtime.batch import Batch
from mev.realtime.cursor import Positions
from mev.realtime.limits import Limits
from mev.realtime.link import EncodedFrame, Link
from mev.realtime.pace import Allowance
from mev.realtime.parcel import FrameParcel, Parcel
from mev.realtime.subscription import Subscription
from mev.realtime.tally import Encoding, Loss, Tally
from mev.realtime.terms import Delivery, OnSlow
from mev.wire import frames
from mev.wire.pb.stream_pb2 import Frame

_TAIL_BYTES = 128  # of a tail with everything in it, for a subscription's id of 64 characters


class Keeper(Protocol):
    """Who looks after clients that are behind."""

    def fell_behind(self, client: "Client") -> None:
        """Take note that something waits for `client`."""

    def unsent(self, subscription: Subscription) -> Positions:
        """Return where what `subscription` has not been sent begins."""

    def overflowed(self, client: "Client") -> None:
        """End a connection that may lose nothing and is too slow."""


class Client:
    """A connection with its subscriptions; the event-loop thread alone may call it."""

    def __init__(
        self, client_id: int, link: Link, keeper: Keeper, *, encoding: Encoding, remote: str, limits: Limits, tally: Tally
    ) -> None:
        self.id = client_id
        self.link = link
        self.encoding = encoding
        self.remote = remote
        self.since_s = time.time()
        self.principal: str | None = None
        self.quota: Allowance | None = None
        """Bytes a second of the principal, over all its connections."""
        self.subscriptions: dict[str, Subscription] = {}
        self.closing = False
        self.sent = 0
        self.dropped = 0
        self.heard = 0
        """Messages the peer has sent: it grows while the peer is alive."""
        self._keeper = keeper
        self._limits = limits
        self._tally = tally
        self._waiting: dict[Subscription, None] = {}
        self.is_numbered = link.transport == "webtransport"
        self._pace = Allowance(limits.json_events_per_s) if encoding is Encoding.JSON else None

    def offer(self, subscription: Subscription, batch: Batch) -> None:
        """Send a live `batch`, or let it wait; what it has of partitions that are not live yet is left out."""
        if self.closing:
            return
        if subscription.behind:
            batch = batch.without(subscription.behind)
        terms = subscription.terms
        trimmed = terms.on_slow is OnSlow.DROP_OLDEST or terms.delivery is Delivery.DATAGRAM
        if trimmed and (self._pace or subscription.pace):
            allowed = self._allowed(subscription, batch.count)
            self.lose(subscription, batch.count - allowed, Loss.MAX_RATE)
            batch = batch.newest(allowed)
        if not batch.count:
            return
        if terms.delivery is Delivery.DATAGRAM:
            self._send_datagrams(subscription, batch)
            return
        if subscription.outbox:
            self.drain()
        if subscription.outbox or not self._ready(subscription):
            self._wait(subscription, batch)
        else:
            self._send(subscription, self.encode(batch), 0)

    def offer_past(self, subscription: Subscription, batch: Batch) -> None:
        """Send `batch`, or let it wait whole: the past is not dropped, it is read no faster than the client takes it."""
        if self.closing:
            return
        if subscription.outbox or not self._ready(subscription):
            subscription.outbox.append(self.encode(batch), asyncio.get_running_loop().time())
            self._keep_waiting(subscription)
        else:
            self._send(subscription, self.encode(batch), 0)

    def encode(self, batch: Batch) -> Parcel:
        """Return a batch in the form the client reads."""
        return batch.frame if self.encoding is Encoding.PROTOBUF else batch.text

    def answer(self, message: bytes) -> None:
        """Send a control message ahead of what waits; a client that asks and never reads is disconnected."""
        if self.link.backlog() > self._limits.soft_buffer_bytes + self._limits.queue_bytes:
            self.link.abort()
        else:
            self.link.send_text(message)

    def drain(self) -> None:
        """Move on what waits, as far as the connection takes it: a parcel of each subscription in turn."""
        moved = True
        while moved:
            moved = False
            for subscription in tuple(self._waiting):
                if subscription.outbox and self._ready(subscription):
                    self._send_next(subscription)
                    moved = True
                if not subscription.outbox:
                    self._waiting.pop(subscription, None)
                    subscription.idle.set()

    @property
    def is_behind(self) -> bool:
        """Whether something waits."""
        return bool(self._waiting)

    def waiting_bytes(self) -> int:
        """Return how many bytes wait in the outboxes."""
        return sum(subscription.outbox.size_bytes for subscription in self._waiting)

    def shed(self) -> None:
        """Give up everything that waits, because the process holds too much; who may lose nothing is disconnected."""
        if any(subscription.terms.on_slow is OnSlow.LOSSLESS for subscription in self._waiting):
            self._keeper.overflowed(self)
            return
        for subscription in self._waiting:
            self.lose(subscription, subscription.outbox.clear(), Loss.BUDGET)

    def tell(self, *, at_last: bool = False) -> None:
        """Report what no later batch came to report: losses, and how many events were sent where their frames may be lost.

        `at_last`, what waits is lost where newer events have been given up already: it could not be had again without these.
        """
        for subscription in self.subscriptions.values():
            if at_last and self._gives_up_newer(subscription):
                self.lose(subscription, subscription.outbox.clear(), Loss.DROP_OLDEST)
            if subscription.outbox and not at_last:
                continue
            if self.is_numbered:
                if subscription.told != subscription.sent or subscription.lost:
                    self.answer(messages.progress(subscription.id, subscription.sent, subscription.lost))
                    subscription.told, subscription.lost = subscription.sent, 0
            elif subscription.lost:
                positions = self._keeper.unsent(subscription)
                self._send(subscription, self.encode(Batch({at[0] for at in positions}, positions)), 0)
            if self._looks_far(subscription):
                self._send_position(subscription)

    def forget(self, subscription: Subscription) -> int:
        """Give up what waits for `subscription`; return how many events that was."""
        self._waiting.pop(subscription, None)
        return subscription.outbox.clear()

    def lose(self, subscription: Subscription, count: int, why: Loss) -> None:
        """Count events that the client will not get."""
        if count:
            subscription.lost += count
            subscription.dropped += count
            self.dropped += count
            self._tally.events_dropped[why] += count

    def _ready(self, subscription: Subscription) -> bool:
        if self.link.backlog() > self._limits.soft_buffer_bytes:
            return False
        paces = [pace for pace in (self._pace, subscription.pace, self.quota) if pace is not None]
        if not paces:
            return True
        now = asyncio.get_running_loop().time()
        return all(pace.left(now) > 0 for pace in paces)

    def _allowed(self, subscription: Subscription, count: int) -> int:
        now = asyncio.get_running_loop().time()
        left = (pace.left(now) for pace in (self._pace, subscription.pace) if pace is not None)
        return max(0, min(count, *map(int, left)))

    def _gives_up_newer(self, subscription: Subscription) -> bool:
        """Say whether events can be lost that come after some that wait."""
        match subscription.terms.on_slow:
            case OnSlow.CONFLATE:
                return True
            case OnSlow.DROP_OLDEST:
                return self._pace is not None or subscription.pace is not None
            case _:
                return False

    def _looks_far(self, subscription: Subscription) -> bool:
        """Say whether the client cannot know where its filter is: frames tell, and none may have come for long."""
        if self.is_numbered or self.encoding is Encoding.JSON or not subscription.terms.filter or subscription.behind:
            return False
        return asyncio.get_running_loop().time() - subscription.position_told_s >= self._limits.position_s

    def _send_position(self, subscription: Subscription) -> None:
        subscription.position_told_s = asyncio.get_running_loop().time()
        payload = frames.encode_positions(self._keeper.unsent(subscription), time.time_ns())
        self._send(subscription, FrameParcel(0, EncodedFrame(payload), {}), 0)

    def _wait(self, subscription: Subscription, batch: Batch) -> None:
        outbox = subscription.outbox
        if outbox.policy is not subscription.terms.on_slow:
            outbox.change(subscription.terms.on_slow, self._limits.batch_max_size)
        superseded = outbox.put(batch, asyncio.get_running_loop().time())
        self.lose(subscription, superseded, Loss.CONFLATE)
        while self._is_too_much(subscription):
            if outbox.policy is OnSlow.LOSSLESS:
                # Later: whoever else is offered this batch has it by then, and every cursor is exact.
                asyncio.get_running_loop().call_soon(self._overflow, subscription)
                break
            self.lose(subscription, outbox.drop_oldest(), Loss.DROP_OLDEST)
        self._keep_waiting(subscription)

    def _keep_waiting(self, subscription: Subscription) -> None:
        self._waiting[subscription] = None
        subscription.idle.clear()
        self._keeper.fell_behind(self)

    def _is_too_much(self, subscription: Subscription) -> bool:
        """Say whether more waits than the subscription's share, which has room for one thing whatever its size."""
        share = self._limits.queue_bytes // max(1, len(self.subscriptions))
        return len(subscription.outbox) > 1 and subscription.outbox.size_bytes > share

    def _overflow(self, subscription: Subscription) -> None:
        is_there = self.subscriptions.get(subscription.id) is subscription
        if is_there and subscription.terms.on_slow is OnSlow.LOSSLESS and self._is_too_much(subscription):
            self._keeper.overflowed(self)

    def _send_next(self, subscription: Subscription) -> None:
        most = self._limits.batch_max_size
        if self._pace or subscription.pace:
            most = max(1, self._allowed(subscription, most))
        waiting = subscription.outbox.take(most)
        if waiting is not None:
            lag_s = asyncio.get_running_loop().time() - waiting.since_s
            stages.QUEUE.observe(lag_s)
            self._send(subscription, waiting.parcel, max(1, int(lag_s * 1000)))

    def _send(self, subscription: Subscription, parcel: Parcel, lag_ms: int) -> None:
        queued = subscription.outbox.events
        if isinstance(parcel, FrameParcel):
            tail = self._tail(subscription, queued, lag_ms)
            self.link.send_frame(parcel.frame, tail, stale=subscription.terms.on_slow is not OnSlow.LOSSLESS)
            size = parcel.size + len(tail)
        else:
            text = parcel.message(subscription.json_id, subscription.lost, queued, lag_ms)
            self.link.send_text(text)
            size = len(text)
        self._count(subscription, parcel.count, size)

    def _send_datagrams(self, subscription: Subscription, batch: Batch) -> None:
        limit = self.link.datagram_bytes()
        for parcel in batch.datagrams(limit - _TAIL_BYTES):
            tail = self._tail(subscription, 0, 0)
            if parcel.size + len(tail) <= limit:
                self.link.send_datagram(parcel.frame.payload + tail)
            elif self._ready(subscription):
                self.link.send_frame(parcel.frame, tail, stale=True)
            else:
                self.lose(subscription, parcel.count, Loss.DROP_OLDEST)
                continue
            self._count(subscription, parcel.count, parcel.size + len(tail))

    def _tail(self, subscription: Subscription, queued: int, lag_ms: int) -> bytes:
        """Return what is behind the shared bytes of a frame: nothing for a client that has one subscription and keeps up."""
        numbered = self.is_numbered
        named = numbered or len(self.subscriptions) > 1
        if not (numbered or subscription.lost or queued or lag_ms):
            return subscription.name_field if named else b""
        tail = Frame(dropped=subscription.lost, queued=queued, lag_ms=lag_ms, sequence=subscription.sent if numbered else 0)
        return subscription.name_field + tail.SerializeToString() if named else tail.SerializeToString()

    def _count(self, subscription: Subscription, events: int, size_bytes: int) -> None:
        subscription.lost = 0
        subscription.sent += events
        self.sent += events
        for pace in (self._pace, subscription.pace):
            if pace is not None:
                pace.spend(events)
        if self.quota is not None:
            self.quota.spend(size_bytes)
        tally = self._tally
        tally.events_sent += events
        tally.frames_sent += 1
        tally.bytes_sent += size_bytes
