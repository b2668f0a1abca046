"""What waits for one subscription whose client is behind, kept by the subscription's policy."""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from mev.bus.kafka import Position
from mev.realtime.batch import Batch, Block, Span
from mev.realtime.budget import Budget
from mev.realtime.parcel import Parcel
from mev.realtime.terms import OnSlow

_ENTRY_BYTES = 200  # of an event that waits alone, besides its own bytes
Key = tuple[str, bytes]


class Waiting(NamedTuple):
    """A parcel, and since when it waits."""

    parcel: Parcel
    since_s: float


class _Event(NamedTuple):
    """The newest event of a key, and since when it or one before it waits."""

    block: Block
    since_s: float

    @property
    def size(self) -> int:
        return len(self.block.values[0]) + _ENTRY_BYTES


class Outbox:
    """A queue of parcels; when conflating, behind them the newest event of each key.

    `encode` makes a parcel of a batch; `repack` makes a batch of events that waited alone.
    """

    def __init__(self, policy: OnSlow, budget: Budget, encode: Callable[[Batch], Parcel], repack: Callable[[list[Span]], Batch]) -> None:
        self.policy = policy
        self.events = 0
        self.size_bytes = 0
        self._budget = budget
        self._encode = encode
        self._repack = repack
        self._parcels: deque[Waiting] = deque()
        self._newest: dict[Key, _Event] = {}

    def __len__(self) -> int:
        return len(self._parcels) + len(self._newest)

    def __bool__(self) -> bool:
        return bool(self.events)

    def put(self, batch: Batch, now_s: float) -> int:
        """Let a batch wait; return how many events were given up because there is a newer one of their key."""
        if self.policy is OnSlow.CONFLATE:
            return sum(self._conflate(block, index, now_s) for block, indices in batch.spans for index in indices)
        self.append(self._encode(batch), now_s)
        return 0

    def append(self, parcel: Parcel, since_s: float) -> None:
        """Let a parcel wait as it is."""
        self._parcels.append(Waiting(parcel, since_s))
        self._budget.hold(parcel)
        self.events += parcel.count
        self.size_bytes += parcel.size

    def take(self, most: int) -> Waiting | None:
        """Return what comes next: a parcel, or `most` conflated events in one."""
        if self._parcels:
            waiting = self._parcels.popleft()
            self._budget.release(waiting.parcel)
            self._shrink(waiting.parcel.count, waiting.parcel.size)
            return waiting
        if not self._newest:
            return None
        return self._pack(most)

    def drop_oldest(self) -> int:
        """Give up what has waited longest, unless it is all there is; return how many events that was."""
        if len(self) < 2:
            return 0
        if self._parcels:
            waiting = self.take(0)
            return waiting.parcel.count if waiting else 0
        self._remove(next(iter(self._newest)))
        return 1

    def clear(self) -> int:
        """Give up everything; return how many events that was."""
        lost = self.events
        while self._parcels:
            self.take(0)
        for key in list(self._newest):
            self._remove(key)
        return lost

    def change(self, policy: OnSlow, most: int) -> None:
        """Keep what comes from now on by another policy; what waits keeps its place."""
        if policy is not OnSlow.CONFLATE:
            while self._newest:
                packed = self._pack(most)
                self.append(packed.parcel, packed.since_s)
        self.policy = policy

    def starts(self) -> dict[Position, int]:
        """Return the first offset of each partition that waits."""
        found: dict[Position, int] = {}
        for waiting in self._parcels:
            for at, offset in waiting.parcel.starts.items():
                found.setdefault(at, offset)
        for event in self._newest.values():
            found.setdefault(event.block.at, event.block.offsets[0])
        return found

    def _conflate(self, block: Block, index: int, now_s: float) -> int:
        key = block.at[0], block.key(index)
        before = self._newest.get(key)
        if before is not None:
            self._remove(key)
        # An event of its own: what else came with it may go.
        alone = Block(block.topic, block.at[1], [block.offsets[index]], [block.values[index]], [key[1]])
        event = self._newest[key] = _Event(alone, before.since_s if before else now_s)
        self.events += 1
        self.size_bytes += event.size
        self._budget.add(event.size)
        return int(before is not None)

    def _pack(self, most: int) -> Waiting:
        keys = list(self._newest)[:most]
        events = [self._newest[key] for key in keys]
        for key in keys:
            self._remove(key)
        batch = self._repack([Span(event.block, range(1)) for event in events])
        return Waiting(self._encode(batch), min(event.since_s for event in events))

    def _remove(self, key: Key) -> None:
        event = self._newest.pop(key)
        self._budget.add(-event.size)
        self._shrink(1, event.size)

    def _shrink(self, events: int, size_bytes: int) -> None:
        self.events -= events
        self.size_bytes -= size_bytes
