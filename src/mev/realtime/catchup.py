"""Catch-up of subscriptions from history to live, per partition, without gaps or repeats.

A subscription that catches up is in its group from the start, but takes no live events of the
partitions in its `behind`. They are read here, as fast as its client accepts them, and never beyond
what the hub has received. When the next offset to read is the next one the hub will receive, the
partition becomes live in the same step of the event loop.
"""

import asyncio
from bisect import bisect_left
from typing import Protocol

from mev.bus import batch as bus
from mev.bus.kafka import Position
from mev.realtime.batch import FrameBatch, MessageBlock, Span, Topic
from mev.realtime.limits import HubLimits
from mev.realtime.metrics import Loss
from mev.realtime.positions import Positions
from mev.realtime.replay_pool import ReplayPool, ReplayReader
from mev.realtime.subscription import Subscription

_LATE_S = 0.02


class LiveStream(Protocol):
    """The hub, as a catch-up uses it."""

    @property
    def limits(self) -> HubLimits:
        """The limits of the hub."""

    @property
    def positions(self) -> Positions:
        """The next offset of each partition."""

    def topic(self, kafka_topic: str) -> Topic:
        """Return a topic."""

    @property
    def log(self) -> str:
        """Identifier of the log of all offsets."""

    def flush(self, subscription: Subscription) -> None:
        """Send the events collected for a subscription."""


class CatchUp:
    """Brings `subscription` to the live end.

    It holds a reader of `pool` only while its client accepts data.
    """

    def __init__(
        self, subscription: Subscription, stream: LiveStream, pool: ReplayPool, reader: ReplayReader
    ) -> None:
        self._subscription = subscription
        self._stream = stream
        self._pool = pool
        self._reader: ReplayReader | None = reader
        self._topics = frozenset(topic for topic, _ in subscription.behind)

    async def run(self) -> None:
        """Read until every partition is live; call :meth:`close` afterwards."""
        behind = self._subscription.behind
        while behind:
            messages = await (await self._reading()).read()
            for some in messages:
                await self._take(some)
            self._go_live()
            if self._reader is not None:
                self._reader.progress.note(
                    sum(max(0, self._live(at) - offset) for at, offset in behind.items())
                )
            if not messages:
                await self._skip_deleted()

    def close(self) -> None:
        """Return the reader to the pool."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    async def _take(self, messages: bus.PartitionBatch) -> None:
        """Offer messages that the hub has received as well, one frame at a time."""
        at = messages.topic, messages.partition
        size = self._stream.limits.batch_max_size
        # After a seek for another partition, messages may be read again.
        start = bisect_left(messages.offsets, self._subscription.behind.get(at, 0))
        while at in self._subscription.behind:
            stop = min(start + size, bisect_left(messages.offsets, self._live(at)))
            if stop <= start:
                break
            self._offer(messages, start, stop)
            start = stop
            await self._until_drained()
        if (
            start < len(messages.offsets)
            and at in self._subscription.behind
            and self._subscription.behind[at] != self._live(at)
        ):
            # The hub has not received the rest, which is read again later.
            await asyncio.sleep(_LATE_S)
            await (await self._reading()).seek(self._subscription.behind)

    def _offer(self, messages: bus.PartitionBatch, start: int, stop: int) -> None:
        subscription, at = self._subscription, (messages.topic, messages.partition)
        offsets, following = messages.offsets[start:stop], messages.offsets[stop - 1] + 1
        subscription.lose(following - self._subscription.behind[at] - len(offsets), Loss.GAP)
        topic = self._stream.topic(messages.topic)
        values, keys = messages.values[start:stop], messages.keys[start:stop]
        block = MessageBlock(
            topic, messages.partition, offsets, values, keys, messages.published_ms[start:stop]
        )
        chosen = block.select(subscription.options.filter)
        if chosen:
            positions = {**subscription.unqueued(), at: following}
            batch = FrameBatch(self._stream.log, self._topics, positions, [Span(block, chosen)])
            subscription.offer_past(batch)
        subscription.advance(at, following)
        self._go_live()

    def _go_live(self) -> None:
        """Make the partitions live in which the reader has reached the hub."""
        live, behind = self._stream.positions, self._subscription.behind
        reached = [at for at, offset in behind.items() if offset == live.get(at)]
        if reached:
            self._make_live(reached)

    def _make_live(self, partitions: list[Position]) -> None:
        self._stream.flush(self._subscription)  # the collected events have been read here
        self._subscription.make_live(partitions)
        if self._reader is not None:
            self._reader.ignore(partitions)

    async def _skip_deleted(self) -> None:
        """Skip deleted messages, and make partitions without further messages live."""
        bounds = await (await self._reading()).bounds(self._topics)
        for at, (earliest, latest) in bounds.items():
            if at not in self._subscription.behind:
                continue
            if (gone := earliest - self._subscription.behind[at]) > 0:
                self._subscription.lose(gone, Loss.GAP)
                self._subscription.advance(at, earliest)
            if at not in self._stream.positions and self._subscription.behind[at] >= latest:
                self._make_live([at])
        self._go_live()

    async def _until_drained(self) -> None:
        """Wait until the client has accepted everything; return the reader if that takes long."""
        try:
            async with asyncio.timeout(self._stream.limits.replay_patience_s):
                await self._subscription.drained()
        except TimeoutError:
            self.close()
            await self._subscription.drained()

    async def _reading(self) -> ReplayReader:
        if self._reader is None:
            self._reader = await self._pool.wait_for_reader()
            await self._reader.seek(self._subscription.behind)
        return self._reader

    def _live(self, at: Position) -> int:
        return self._stream.positions.get(at, 0)
