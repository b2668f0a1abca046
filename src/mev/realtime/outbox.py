"""Queue of one subscription with a slow client, managed by the subscription's policy."""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from mev.bus.kafka import Position
from mev.realtime.backpressure import QueueBudget
from mev.realtime.batch import EncodedBatch, FrameBatch, MessageBlock, Span
from mev.realtime.options import OnSlow

_ENTRY_BYTES = 200  # overhead of an event that is queued alone
Key = tuple[str, bytes]


class Waiting(NamedTuple):
    """An encoded batch, and the time since which it waits."""

    encoded: EncodedBatch
    since_s: float


class _Event(NamedTuple):
    """The newest event of a key, and the time since which this key waits."""

    block: MessageBlock
    since_s: float

    @property
    def size(self) -> int:
        return len(self.block.values[0]) + _ENTRY_BYTES


class Outbox:
    """A queue of encoded batches and, when conflating, the newest event of each key after them.

    `encode` encodes a batch; `repack` makes a batch of single events.
    """

    def __init__(
        self,
        policy: OnSlow,
        budget: QueueBudget,
        encode: Callable[[FrameBatch], EncodedBatch],
        repack: Callable[[list[Span]], FrameBatch],
    ) -> None:
        self.policy = policy
        self.events = 0
        self.size_bytes = 0
        self._budget = budget
        self._encode = encode
        self._repack = repack
        self._encoded_batches: deque[Waiting] = deque()
        self._newest: dict[Key, _Event] = {}

    def __len__(self) -> int:
        return len(self._encoded_batches) + len(self._newest)

    def __bool__(self) -> bool:
        return bool(self.events)

    def put(self, batch: FrameBatch, now_s: float) -> int:
        """Queue a batch; return the number of events replaced by newer ones with the same key."""
        if self.policy is OnSlow.CONFLATE:
            return sum(
                self._conflate(block, index, now_s)
                for block, indices in batch.spans
                for index in indices
            )
        self.append(self._encode(batch), now_s)
        return 0

    def append(self, encoded: EncodedBatch, since_s: float) -> None:
        """Queue an encoded batch."""
        self._encoded_batches.append(Waiting(encoded, since_s))
        self._budget.hold(encoded)
        self.events += encoded.count
        self.size_bytes += encoded.size

    def take(self, most: int) -> Waiting | None:
        """Remove and return the next encoded batch, or up to `most` conflated events as one."""
        if self._encoded_batches:
            waiting = self._encoded_batches.popleft()
            self._budget.release(waiting.encoded)
            self._shrink(waiting.encoded.count, waiting.encoded.size)
            return waiting
        if not self._newest:
            return None
        return self._pack(most)

    def exceeds(self, limit_bytes: int) -> bool:
        """Return whether the queue has more bytes than allowed; one entry always fits."""
        return len(self) > 1 and self.size_bytes > limit_bytes

    def trim(self, limit_bytes: int) -> int:
        """Drop the oldest entries above the limit; return their number of events."""
        before = self.events
        while self.exceeds(limit_bytes):
            if self._encoded_batches:
                self.take(0)
            else:
                self._remove(next(iter(self._newest)))
        return before - self.events

    def clear(self) -> int:
        """Drop everything; return the number of events."""
        lost = self.events
        while self._encoded_batches:
            self.take(0)
        for key in list(self._newest):
            self._remove(key)
        return lost

    def change(self, policy: OnSlow, most: int) -> None:
        """Use another policy for new events; queued ones keep their place."""
        if policy is not OnSlow.CONFLATE:
            while self._newest:
                packed = self._pack(most)
                self.append(packed.encoded, packed.since_s)
        self.policy = policy

    def encoded_starts(self) -> dict[Position, int]:
        """Return the first offset of each partition in the queued encoded batches."""
        found: dict[Position, int] = {}
        for waiting in self._encoded_batches:
            for at, offset in waiting.encoded.starts.items():
                found.setdefault(at, offset)
        return found

    def newest_starts(self) -> dict[Position, int]:
        """Return the first offset of each partition in the conflated events."""
        found: dict[Position, int] = {}
        for event in self._newest.values():
            found.setdefault(event.block.at, event.block.offsets[0])
        return found

    def _conflate(self, block: MessageBlock, index: int, now_s: float) -> int:
        key = block.at[0], block.key(index)
        before = self._newest.get(key)
        if before is not None:
            self._remove(key)
        # A block of its own, so that the other events of the batch can be freed.
        published_ms = block.published_ms[index : index + 1]
        alone = MessageBlock(
            block.topic,
            block.at[1],
            [block.offsets[index]],
            [block.values[index]],
            [key[1]],
            published_ms,
        )
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
