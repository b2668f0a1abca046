"""Subscriptions to the same set of topics: they share every batch."""

from mev.realtime.batch import Batch, Block, Span
from mev.realtime.client import Subscription
from mev.realtime.window import Window


class Group:
    """Collect events of `topics` and send them when a frame is full or the window ends."""

    def __init__(self, topics: frozenset[str], max_size: int, window: Window) -> None:
        self.topics = topics
        self._max_size = max_size
        self._window = window
        self._members: dict[Subscription, None] = {}
        self._batch = Batch()

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
        start, end = 0, len(block.values)
        while start < end:
            stop = min(end, start + self._max_size - self._batch.count)
            self._batch.add(Span(block, start, stop))
            start = stop
            if self._batch.count >= self._max_size:
                self.flush()
        if self._batch.count:
            self._window.open(self)

    def flush(self) -> None:
        """Send what is collected."""
        batch, self._batch = self._batch, Batch()
        self._window.shut(self)
        if not batch.count:
            return
        for subscription in tuple(self._members):
            subscription.client.offer(subscription, batch)
