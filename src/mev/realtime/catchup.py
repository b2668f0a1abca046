"""From the past into the live stream, partition by partition, without a hole and without a repeat.

A subscription that catches up is in its group from the start, and `behind` names the partitions that it is not live in yet: of these the
group's batches give it nothing. It reads them itself, as fast as its client takes them, and never beyond what the hub has been given. Where
the next offset it wants is the next one the hub will get, the partition becomes live in that very step of the event loop.
"""

import asyncio
from bisect import bisect_left
from typing import Protocol

from mev.bus import batch as bus
from mev.bus.kafka import Position
from mev.realtime.batch import Batch, Block, Span, Topic
from mev.realtime.cursor import Positions
from mev.realtime.group import select
from mev.realtime.limits import Limits
from mev.realtime.past import PastReader, Pool
from mev.realtime.subscription import Subscription
from mev.realtime.tally import Loss

_LATE_S = 0.02


class Stream(Protocol):
    """The live side."""

    @property
    def limits(self) -> Limits:
        """What bounds it."""

    @property
    def positions(self) -> Positions:
        """What comes next in each partition."""

    def topic(self, kafka_topic: str) -> Topic:
        """Return what is known of a topic."""

    def unsent(self, subscription: Subscription) -> Positions:
        """Return where what a client has not been sent begins."""


class CatchUp:
    """Brings `subscription` to the live end. It holds a reader of `pool` only while its client takes what is read."""

    def __init__(self, subscription: Subscription, stream: Stream, pool: Pool, reader: PastReader) -> None:
        self._subscription = subscription
        self._stream = stream
        self._pool = pool
        self._reader: PastReader | None = reader
        self._behind = subscription.behind
        self._topics = frozenset(topic for topic, _ in self._behind)

    async def run(self) -> None:
        """Read until every partition is live. Call :meth:`close` afterwards."""
        while self._behind:
            messages = await (await self._reading()).read()
            for some in messages:
                await self._take(some)
            self._go_live()
            if not messages:
                await self._look_for_the_missing()

    def close(self) -> None:
        """Give the reader back."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    async def _take(self, messages: bus.Batch) -> None:
        """Offer what the hub has been given too, a frame at a time."""
        at = messages.topic, messages.partition
        size = self._stream.limits.batch_max_size
        start = bisect_left(messages.offsets, self._behind.get(at, 0))  # a seek for another partition may bring some again
        while at in self._behind:
            stop = min(start + size, bisect_left(messages.offsets, self._live(at)))
            if stop <= start:
                break
            self._offer(messages, start, stop)
            start = stop
            await self._until_idle()
        if start < len(messages.offsets) and at in self._behind and self._behind[at] != self._live(at):
            # The hub is late; what is left here comes again.
            await asyncio.sleep(_LATE_S)
            await (await self._reading()).seek(self._behind)

    def _offer(self, messages: bus.Batch, start: int, stop: int) -> None:
        subscription, at = self._subscription, (messages.topic, messages.partition)
        offsets, following = messages.offsets[start:stop], messages.offsets[stop - 1] + 1
        subscription.client.lose(subscription, following - self._behind[at] - len(offsets), Loss.GAP)
        topic = self._stream.topic(messages.topic)
        block = Block(topic, messages.partition, offsets, messages.values[start:stop], messages.keys[start:stop])
        chosen = select(subscription.terms.filter, block)
        if chosen:
            batch = Batch(self._topics, {**self._stream.unsent(subscription), at: following}, [Span(block, chosen)])
            subscription.client.offer_past(subscription, batch)
        self._behind[at] = following
        self._go_live()

    def _go_live(self) -> None:
        """Let the partitions join that the hub and the reader have come equally far in."""
        reached = [at for at, offset in self._behind.items() if offset == self._stream.positions.get(at)]
        if reached:
            self._make_live(reached)

    def _make_live(self, partitions: list[Position]) -> None:
        group = self._subscription.group
        if group is not None:
            group.flush()  # what is collected was read here
        for at in partitions:
            del self._behind[at]
        if self._reader is not None:
            self._reader.ignore(partitions)

    async def _look_for_the_missing(self) -> None:
        """Go on behind what was deleted before it could be read, and leave to the hub what holds nothing."""
        bounds = await (await self._reading()).bounds(self._topics)
        for at, (earliest, latest) in bounds.items():
            if at not in self._behind:
                continue
            if (gone := earliest - self._behind[at]) > 0:
                self._subscription.client.lose(self._subscription, gone, Loss.GAP)
                self._behind[at] = earliest
            if at not in self._stream.positions and self._behind[at] >= latest:
                self._make_live([at])
        self._go_live()

    async def _until_idle(self) -> None:
        """Wait until the client has taken what was offered; one that takes long gives the reader back meanwhile."""
        idle = self._subscription.idle
        try:
            async with asyncio.timeout(self._stream.limits.replay_patience_s):
                await idle.wait()
        except TimeoutError:
            self.close()
            await idle.wait()

    async def _reading(self) -> PastReader:
        if self._reader is None:
            self._reader = await self._pool.wait_for_reader()
            await self._reader.seek(self._behind)
        return self._reader

    def _live(self, at: Position) -> int:
        return self._stream.positions.get(at, 0)
