"""Events that travel together, and the bytes they become.

A batch belongs to a set of topics and a filter, not to a client: whatever it is encoded to is encoded once and shared.
"""

import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple, TypeVar

import orjson

from mev.bus.kafka import Position
from mev.realtime.cursor import Positions, cursor
from mev.realtime.link import EncodedFrame
from mev.realtime.parcel import FrameParcel, TextParcel
from mev.wire import frames
from mev.wire.filters import Columns
from mev.wire.registry import EventType
from mev.wire.render import Render

_T = TypeVar("_T")
_EVENT_BYTES = 8  # of an event in a frame, besides its own: its length and its step
_FRAME_BYTES = 96  # of a frame of one slice, besides its events


class Topic(NamedTuple):
    """An event type as the hub sees it, with what renders it as JSON."""

    type: EventType
    render: Render


class Block:
    """Messages of one partition in offset order; every batch with some of them holds it by reference."""

    def __init__(self, topic: Topic, partition: int, offsets: Sequence[int], values: Sequence[bytes], keys: Sequence[bytes]) -> None:
        self.topic = topic
        self.at: Position = (topic.type.topic, partition)
        self.offsets = offsets
        self.values = values
        self.keys = keys
        self._texts: dict[int, bytes] = {}

    @cached_property
    def columns(self) -> Columns:
        """The events' fields, decoded for whichever filters ask."""
        return Columns(self.topic.type, self.values)

    def key(self, index: int) -> bytes:
        """Return an event's key; one that was published without any has its whole value for one."""
        return self.keys[index] or self.values[index]

    def text(self, index: int) -> bytes:
        """Return an event as JSON, rendered the first time somebody asks."""
        text = self._texts.get(index)
        if text is None:
            text = self._texts[index] = self.topic.render(self.values[index])
        return text


class Span(NamedTuple):
    """Some events of a block, in order; a range where they are contiguous."""

    block: Block
    indices: Sequence[int]

    def offsets(self) -> Sequence[int]:
        """Return the events' offsets."""
        return _pick(self.block.offsets, self.indices)

    def values(self) -> Sequence[bytes]:
        """Return the events' bytes."""
        return _pick(self.block.values, self.indices)


class Batch:
    """Spans of blocks in the order they came; the order within a partition is kept.

    `positions` is where everything before it ends, for the topics in `kafka_topics`; it is read when the batch is encoded. A batch that
    is not `complete` leaves out events between its own: a reader who resumes behind it goes on from `positions` as they are.
    """

    def __init__(self, kafka_topics: Iterable[str], positions: Positions, spans: Iterable[Span] = (), *, complete: bool = True) -> None:
        self._kafka_topics = kafka_topics
        self._positions = positions
        self._complete = complete
        self.spans = list(spans)
        self.count = sum(len(span.indices) for span in self.spans)
        self._newest: dict[int, Batch] = {}
        self._datagrams: dict[int, list[FrameParcel]] = {}

    def add(self, span: Span) -> None:
        """Append a span."""
        self.spans.append(span)
        self.count += len(span.indices)

    @cached_property
    def frame(self) -> FrameParcel:
        """The batch as Protobuf."""
        payload = frames.encode_frame(self._runs(), time.time_ns())
        return FrameParcel(self.count, EncodedFrame(payload), self.starts())

    @cached_property
    def text(self) -> TextParcel:
        """The batch as JSON."""
        events = [block.text(index) for block, indices in self.spans for index in indices]
        body = b'"events":[%b],"cursor":%b' % (b",".join(events), orjson.dumps(self._cursor()))
        return TextParcel(self.count, body, self.starts())

    def without(self, behind: Positions) -> "Batch":
        """Return the events of partitions that are not in `behind`, as a batch that ends there in those that are."""
        spans = [span for span in self.spans if span.block.at not in behind]
        ends = {at: end for at, end in self._ends().items() if at not in behind}
        return Batch(self._kafka_topics, {**self._positions, **ends, **behind}, spans)

    def newest(self, count: int) -> "Batch":
        """Return the newest `count` events as a batch that ends where this one ends."""
        if count >= self.count:
            return self
        batch = self._newest.get(count)
        if batch is None:
            spans: list[Span] = []
            for block, indices in reversed(self.spans):
                if not count:
                    break
                kept = indices[max(0, len(indices) - count) :]
                spans.append(Span(block, kept))
                count -= len(kept)
            batch = Batch(self._kafka_topics, {**self._positions, **self._ends()}, reversed(spans))
            self._newest[batch.count] = batch
        return batch

    def datagrams(self, limit: int) -> list[FrameParcel]:
        """Return the batch in frames of at most `limit` bytes; an event that does not fit gets a larger frame of its own."""
        parcels = self._datagrams.get(limit)
        if parcels is None:
            parcels = self._datagrams[limit] = [Batch((), {}, [span]).frame for span in self._small_spans(limit)]
        return parcels

    def _small_spans(self, limit: int) -> Iterable[Span]:
        for block, indices in self.spans:
            start, size = 0, _FRAME_BYTES
            for place, index in enumerate(indices):
                needed = len(block.values[index]) + _EVENT_BYTES
                if place > start and size + needed > limit:
                    yield Span(block, indices[start:place])
                    start, size = place, _FRAME_BYTES
                size += needed
            yield Span(block, indices[start:])

    def _cursor(self) -> dict[str, dict[str, int]]:
        return cursor({**self._positions, **self._ends()} if self._complete else self._positions, self._kafka_topics)

    def _ends(self) -> dict[Position, int]:
        return {block.at: block.offsets[indices[-1]] + 1 for block, indices in self.spans}

    def starts(self) -> dict[Position, int]:
        """Return the first offset of each partition."""
        return {block.at: block.offsets[indices[0]] for block, indices in reversed(self.spans)}

    def _runs(self) -> list[frames.Run]:
        runs: dict[Position, tuple[list[int], list[bytes]]] = {}
        for span in self.spans:
            offsets, values = runs.setdefault(span.block.at, ([], []))
            offsets += span.offsets()
            values += span.values()
        return [frames.Run(*at, offsets, values) for at, (offsets, values) in runs.items()]


def _pick(items: Sequence[_T], indices: Sequence[int]) -> Sequence[_T]:
    return items[indices.start : indices.stop] if isinstance(indices, range) else [items[index] for index in indices]
