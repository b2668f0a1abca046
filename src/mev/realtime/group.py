"""Groups of subscriptions with the same topics and filter, which share every batch."""

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from mev.bus.kafka import Position
from mev.realtime import metrics
from mev.realtime.batch import FrameBatch, MessageBlock, Span
from mev.realtime.metrics import Loss
from mev.realtime.positions import Positions
from mev.wire.filters import Filter

_SLACK_S = 0.001


class Flushable(Protocol):
    """A collector whose batch is sent when its window ends."""

    def flush(self) -> None:
        """Send the batch."""


class Window:
    """Flushes each pending group when its window ends.

    All windows are equally long, so they end in the order in which they were opened.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._deadlines: dict[Flushable, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def resize(self, window_s: float) -> None:
        """Set the length of windows opened from now on."""
        self._window_s = window_s

    def has_passed(self, since_s: float) -> bool:
        """Return whether a window has passed since a time of the event loop."""
        return asyncio.get_running_loop().time() - since_s >= self._window_s

    def open(self, group: Flushable) -> None:
        """Open the window of `group`, unless it is open."""
        loop = asyncio.get_running_loop()
        if group not in self._deadlines:
            self._deadlines[group] = loop.time() + self._window_s
        if self._timer is None:
            self._timer = loop.call_at(next(iter(self._deadlines.values())), self._fire)

    def shut(self, group: Flushable) -> None:
        """Close the window of `group`, which has been flushed."""
        self._deadlines.pop(group, None)

    def close(self) -> None:
        """Stop the timer; collected events are not sent."""
        self._deadlines.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        # Groups due within the slack are flushed together: one wake-up instead of several.
        due = loop.time() + _SLACK_S
        for group in [group for group, deadline in self._deadlines.items() if deadline <= due]:
            self.shut(group)
            group.flush()
        if self._deadlines and self._timer is None:
            self._timer = loop.call_at(next(iter(self._deadlines.values())), self._fire)


class Member(Protocol):
    """A subscription, as its group uses it."""

    def offer(self, batch: FrameBatch) -> None:
        """Send or queue a live batch."""

    def lose(self, count: int, why: Loss) -> None:
        """Count events that the subscription will not get."""


class Group:
    """Collects the events of `kafka_topics` that match `filter`, and sends them in batches.

    A batch is sent when it is full, when its window ends, and at once if nothing was sent during
    the last window: batches form only under load.
    """

    def __init__(
        self,
        log: str,
        kafka_topics: frozenset[str],
        filter_: Filter,
        max_size: int,
        window: Window,
        positions: Positions,
    ) -> None:
        self._log = log
        self.kafka_topics = kafka_topics
        self.filter = filter_
        self._max_size = max_size
        self._window = window
        self._positions = positions
        self._members: dict[Member, None] = {}
        self._since_s = 0.0
        self._sent_s = -math.inf
        self._batch = self._new_batch()

    def __bool__(self) -> bool:
        return bool(self._members)

    def join(self, member: Member) -> None:
        """Add a member; events collected before are sent to the previous members."""
        self.flush()
        self._members[member] = None

    def leave(self, member: Member) -> None:
        """Remove a member."""
        self._members.pop(member, None)

    def add(self, block: MessageBlock) -> None:
        """Collect the block's events; send each full frame."""
        chosen = block.select(self.filter)
        at_once = False
        if not self._batch.count:
            self._since_s = time.monotonic()
            at_once = self._window.has_passed(self._sent_s)
        start, end = 0, len(chosen)
        while start < end:
            stop = min(end, start + self._max_size - self._batch.count)
            self._batch.add(Span(block, chosen[start:stop]))
            start = stop
            if self._batch.count >= self._max_size:
                self.flush()
                at_once = False
        if at_once:
            self.flush()
        elif self._batch.count:
            self._window.open(self)

    def lose(self, count: int) -> None:
        """Count events that could not be read as lost for every member."""
        for member in self._members:
            member.lose(count, Loss.GAP)

    def flush(self) -> None:
        """Send the collected events."""
        self._window.shut(self)
        if not self._batch.count:
            return
        batch, self._batch = self._batch, self._new_batch()
        self._sent_s = asyncio.get_running_loop().time()
        now_s = time.monotonic()
        metrics.FLUSH_LATENCY.observe(now_s - self._since_s)
        self._since_s = now_s
        for member in tuple(self._members):
            member.offer(batch)

    def starts(self) -> dict[Position, int]:
        """Return the first offset of each partition among the collected events."""
        return self._batch.starts()

    def _new_batch(self) -> FrameBatch:
        return FrameBatch(self._log, self.kafka_topics, self._positions)


class Groups:
    """The groups of a hub; each exists while it has members."""

    def __init__(self, log: str, max_size: int, window: Window) -> None:
        self._log = log
        self._max_size = max_size
        self._window = window
        self._groups: dict[tuple[frozenset[str], Filter], Group] = {}
        self._by_topic: dict[str, dict[Group, None]] = {}
        self._by_member: dict[Member, Group] = {}

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups.values())

    def __len__(self) -> int:
        return len(self._groups)

    def of_topic(self, kafka_topic: str) -> Sequence[Group]:
        """Return the groups that want events of a topic."""
        return tuple(self._by_topic.get(kafka_topic, ()))

    def join(
        self, member: Member, kafka_topics: frozenset[str], filter_: Filter, positions: Positions
    ) -> None:
        """Add a member to the group of its topics and filter.

        `positions` has the next offsets of the topics.
        """
        group = self._groups.get((kafka_topics, filter_))
        if group is None:
            group = Group(self._log, kafka_topics, filter_, self._max_size, self._window, positions)
            self._groups[kafka_topics, filter_] = group
            for topic in kafka_topics:
                self._by_topic.setdefault(topic, {})[group] = None
        group.join(member)
        self._by_member[member] = group

    def leave(self, member: Member) -> None:
        """Remove a member from its group; it does not get the events collected so far."""
        group = self._by_member.pop(member, None)
        if group is None:
            return
        group.leave(member)
        if not group:
            del self._groups[group.kafka_topics, group.filter]
            for topic in group.kafka_topics:
                del self._by_topic[topic][group]

    def flush(self, member: Member) -> None:
        """Send the events collected in a member's group."""
        group = self._by_member.get(member)
        if group is not None:
            group.flush()

    def starts(self, member: Member) -> Positions:
        """Return the first offset of each partition among the events collected for a member."""
        group = self._by_member.get(member)
        return group.starts() if group is not None else {}
