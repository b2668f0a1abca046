"""Subscriptions to the same topics with the same filter: they share every batch."""

import time
from collections.abc import Sequence

from mev.bus.kafka import Position
from mev.realtime import stages
from mev.realtime.batch import Batch, Block, Span
from mev.realtime.cursor import Positions
from mev.realtime.subscription import Subscription
from mev.realtime.tally import Loss
from mev.realtime.window import Window
from mev.wire.filters import Filter


class Group:
    """Collect the events of `kafka_topics` that `filter` lets through, and send them when a frame is full or the window ends."""

    def __init__(self, kafka_topics: frozenset[str], filter_: Filter, max_size: int, window: Window, positions: Positions) -> None:
        self.kafka_topics = kafka_topics
        self._filter = filter_
        self._max_size = max_size
        self._window = window
        self._positions = positions
        self._members: dict[Subscription, None] = {}
        self._since_s = 0.0
        self._batch = self._new_batch()

    def __bool__(self) -> bool:
        return bool(self._members)

    def join(self, subscription: Subscription) -> None:
        """Add a subscription; what was collected before goes to the members before."""
        self.flush()
        self._members[subscription] = None

    def leave(self, subscription: Subscription) -> None:
        """Remove a subscription."""
        self._members.pop(subscription, None)

    def add(self, block: Block) -> None:
        """Collect the block's events, sending full frames on the way."""
        chosen: Sequence[int] = select(self._filter, block)
        if not self._batch.count:
            self._since_s = time.monotonic()
        start, end = 0, len(chosen)
        while start < end:
            stop = min(end, start + self._max_size - self._batch.count)
            self._batch.add(Span(block, chosen[start:stop]))
            start = stop
            if self._batch.count >= self._max_size:
                self.flush()
        if self._batch.count:
            self._window.open(self)

    def lose(self, count: int) -> None:
        """Tell every member of events that could not be read."""
        for subscription in self._members:
            subscription.client.lose(subscription, count, Loss.GAP)

    def flush(self) -> None:
        """Send what is collected."""
        self._window.shut(self)
        if not self._batch.count:
            return
        batch, self._batch = self._batch, self._new_batch()
        now_s = time.monotonic()
        stages.FLUSH.observe(now_s - self._since_s)
        self._since_s = now_s
        for subscription in tuple(self._members):
            subscription.client.offer(subscription, batch)

    def starts(self) -> dict[Position, int]:
        """Return the first offset of each partition that is collected and not sent."""
        return self._batch.starts()

    def _new_batch(self) -> Batch:
        return Batch(self.kafka_topics, self._positions)


def select(filter_: Filter, block: Block) -> Sequence[int]:
    """Return the places of the block's events that the filter lets through."""
    chosen = filter_.select(block.columns) if filter_ else None
    return range(len(block.values)) if chosen is None else chosen
