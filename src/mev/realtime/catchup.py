"""From the past into the live stream, without a hole and without a repeat.

A subscription that catches up reads the log by itself, as fast as its client takes it. When it is near the end it joins its group, whose
batches are held from that moment; it reads on to exactly where the group's first batch begins, and then gets what was held. The hub's
positions and the reader's are those of one log, so nothing has to be compared but offsets.
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
from mev.realtime.past import PastReader
from mev.realtime.subscription import Subscription
from mev.realtime.tally import Loss

_NEAR_EVENTS = 2_000
_MAX_HELD_EVENTS = 50_000
_LATE_S = 0.005


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

    def join(self, subscription: Subscription) -> None:
        """Add a subscription to its group: from now on it is offered what comes."""

    def leave(self, subscription: Subscription) -> None:
        """Take it out again."""


async def catch_up(subscription: Subscription, stream: Stream, reader: PastReader, behind: dict[Position, int]) -> None:
    """Bring `subscription` from `behind` to the live end."""
    catching = _CatchUp(subscription, stream, reader, behind)
    while True:
        await catching.read()
        if catching.distance() <= _NEAR_EVENTS and await catching.join():
            return


class _CatchUp:
    def __init__(self, subscription: Subscription, stream: Stream, reader: PastReader, behind: dict[Position, int]) -> None:
        self._subscription = subscription
        self._stream = stream
        self._reader = reader
        self._behind = behind

    def distance(self) -> int:
        """Return how many messages there are between here and the live end."""
        return sum(max(0, self._live(at) - offset) for at, offset in self._behind.items())

    async def join(self) -> bool:
        """Join the group and close the hole before it; say whether that worked, or too much would have to be held meanwhile."""
        subscription = self._subscription
        if await self._find_new_partitions():
            return False
        while any(self._live(at) < offset for at, offset in self._behind.items()):  # noqa: ASYNC110 - the live side is milliseconds late
            await asyncio.sleep(_LATE_S)
        held = subscription.held = []
        self._stream.join(subscription)
        ends = {at: self._live(at) for at in self._behind}
        while any(offset < ends[at] for at, offset in self._behind.items()):
            await self.read(ends)
            if sum(batch.count for batch in held) > _MAX_HELD_EVENTS:
                self._stream.leave(subscription)
                subscription.held = None
                await self._reader.seek(self._behind)  # it may have read past the ends
                return False
        subscription.held = subscription.behind = None
        for batch in held:
            subscription.client.offer(subscription, batch)
        return True

    async def read(self, ends: dict[Position, int] | None = None) -> None:
        """Read once, and offer what came before `ends`."""
        for messages in await self._reader.read():
            at = messages.topic, messages.partition
            lost = messages.offsets[0] - self._behind[at]
            if lost > 0:
                self._subscription.client.lose(self._subscription, lost, Loss.GAP)
            count = bisect_left(messages.offsets, ends[at]) if ends else len(messages.offsets)
            if count:
                await self._offer(messages, count)
                self._behind[at] = messages.offsets[count - 1] + 1
            elif ends:
                self._behind[at] = ends[at]

    async def _offer(self, messages: bus.Batch, count: int) -> None:
        subscription, terms = self._subscription, self._subscription.terms
        topic = self._stream.topic(messages.topic)
        block = Block(topic, messages.partition, messages.offsets[:count], messages.values[:count], messages.keys[:count])
        chosen = select(terms.filter, block)
        size = self._stream.limits.batch_max_size
        for start in range(0, len(chosen), size):
            batch = Batch({at[0] for at in self._behind}, self._behind, [Span(block, chosen[start : start + size])])
            subscription.client.offer(subscription, batch, past=True)
            await subscription.idle.wait()

    async def _find_new_partitions(self) -> bool:
        topics = {at[0] for at in self._behind}
        fresh = [at for at in self._stream.positions if at[0] in topics and at not in self._behind]
        if fresh:
            self._behind.update(dict.fromkeys(fresh, 0))
            await self._reader.seek(self._behind)
        return bool(fresh)

    def _live(self, at: Position) -> int:
        return self._stream.positions.get(at, 0)
