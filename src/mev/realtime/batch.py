"""Batches of events, and their encodings.

A batch belongs to a set of topics and a filter, not to a client: it is encoded once, and the
encoding is shared.
"""

import time
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple, TypeVar

import orjson

from mev.bus.kafka import Position
from mev.realtime.positions import Positions, cursor
from mev.wire import frames, resume
from mev.wire.filters import Columns, Filter
from mev.wire.registry import EventType
from mev.wire.render import Render

_T = TypeVar("_T")
_EVENT_BYTES = 8  # overhead of an event in a frame: its length and its step
_FRAME_BYTES = 96  # overhead of a frame with one slice


class Topic(NamedTuple):
    """An event type with its JSON renderer."""

    type: EventType
    render: Render


class MessageBlock:
    """Messages of one partition in offset order, shared by the batches that contain some of them.

    `published_ms` holds the publication times, or is empty if they are unknown.
    """

    def __init__(
        self,
        topic: Topic,
        partition: int,
        offsets: Sequence[int],
        values: Sequence[bytes],
        keys: Sequence[bytes],
        published_ms: Sequence[int] = (),
    ) -> None:
        self.topic = topic
        self.at: Position = (topic.type.topic, partition)
        self.offsets = offsets
        self.values = values
        self.keys = keys
        self.published_ms = published_ms
        self._texts: dict[int, bytes] = {}

    @cached_property
    def columns(self) -> Columns:
        """The events' fields, decoded once for all filters."""
        return Columns(self.topic.type, self.values)

    def key(self, index: int) -> bytes:
        """Return an event's key, or its whole value if it has no key."""
        return self.keys[index] or self.values[index]

    def select(self, filter_: Filter) -> Sequence[int]:
        """Return the indices of the events that match a filter."""
        chosen = filter_.select(self.columns) if filter_ else None
        return range(len(self.values)) if chosen is None else chosen

    def text(self, index: int) -> bytes:
        """Return an event as JSON, rendered on first use."""
        text = self._texts.get(index)
        if text is None:
            text = self._texts[index] = self.topic.render(self.values[index])
        return text


class Span(NamedTuple):
    """Some events of a block, in order; a range if they are contiguous."""

    block: MessageBlock
    indices: Sequence[int]

    def offsets(self) -> Sequence[int]:
        """Return the events' offsets."""
        return _pick(self.block.offsets, self.indices)

    def values(self) -> Sequence[bytes]:
        """Return the events' bytes."""
        return _pick(self.block.values, self.indices)

    def published_ms(self) -> Sequence[int]:
        """Return the events' publication times, empty if unknown."""
        return _pick(self.block.published_ms, self.indices) if self.block.published_ms else ()


class Encoding(StrEnum):
    """Encoding of a client's events."""

    JSON = "json"
    PROTOBUF = "protobuf"


class EncodedFrame:
    """A serialised `mev.v1.Frame` without subscriber-specific fields, shared by all subscribers."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.websocket_message: bytes | None = None
        """The payload with its WebSocket header, set by the first WebSocket that sends it."""
        self._named: tuple[bytes, EncodedFrame] | None = None

    def named(self, name_field: bytes) -> "tuple[EncodedFrame, bytes]":
        """Return a frame and the bytes to append, which together end with `name_field`.

        Subscribers with the first name requested share the bytes of one frame; for other names it
        is appended separately.
        """
        if self._named is None:
            self._named = name_field, EncodedFrame(self.payload + name_field)
        first, frame = self._named
        return (frame, b"") if first == name_field else (self, name_field)


class EncodedFrames:
    """A batch as Protobuf.

    `starts` are its first offsets by partition; `waiters` is the number of queues that hold it.
    """

    __slots__ = ("count", "frame", "starts", "waiters")

    def __init__(self, count: int, frame: EncodedFrame, starts: dict[Position, int]) -> None:
        self.count = count
        self.frame = frame
        self.starts = starts
        self.waiters = 0

    @property
    def size(self) -> int:
        """Bytes it occupies in a queue."""
        return len(self.frame.payload)


class EncodedText:
    """A batch as JSON: the client-independent part of an `events` message.

    `resume` is the token of the position after it, empty if it cannot be resumed.
    """

    __slots__ = ("body", "count", "resume", "starts", "waiters")

    def __init__(self, count: int, body: bytes, starts: dict[Position, int], resume: str) -> None:
        self.count = count
        self.body = body
        self.starts = starts
        self.resume = resume
        self.waiters = 0

    @property
    def size(self) -> int:
        """Bytes it occupies in a queue."""
        return len(self.body)

    def message(self, json_id: bytes, dropped: int, total: int, queued: int, lag_ms: int) -> bytes:
        """Return the whole message: the subscription's id, the events, and its state."""
        state = b'"dropped":%d,"dropped_total":%d,"queued":%d,"lag_ms":%d' % (
            dropped,
            total,
            queued,
            lag_ms,
        )
        return b'{"op":"events","id":%b,%b,%b}' % (json_id, self.body, state)

    def snapshot(self, json_id: bytes, left: int) -> bytes:
        """Return the events as a part of a snapshot; `left` events of it follow."""
        return b'{"op":"snapshot","id":%b,%b,"left":%d}' % (json_id, self.body, left)


EncodedBatch = EncodedFrames | EncodedText


class FrameBatch:
    """Spans of blocks in order of arrival, which keeps the order within a partition.

    `positions` are the end offsets before this batch in the log `log`, for the topics in
    `kafka_topics`; they are read when the batch is encoded. A batch that is not `complete` omits
    events between its own, so a reader that resumes after it continues at `positions`. A batch
    without topics cannot be resumed.
    """

    def __init__(
        self,
        log: str,
        kafka_topics: Collection[str],
        positions: Positions,
        spans: Iterable[Span] = (),
        *,
        complete: bool = True,
    ) -> None:
        self._log = log
        self._kafka_topics = kafka_topics
        self._positions = positions
        self._complete = complete
        self.spans = list(spans)
        self.count = sum(len(span.indices) for span in self.spans)
        self._newest: dict[int, FrameBatch] = {}
        self._datagrams: dict[int, list[EncodedFrames]] = {}

    def add(self, span: Span) -> None:
        """Append a span."""
        self.spans.append(span)
        self.count += len(span.indices)

    @cached_property
    def frame(self) -> EncodedFrames:
        """The batch as a Protobuf frame."""
        payload = frames.encode_frame(self._runs(), time.time_ns(), self._resume())
        return EncodedFrames(self.count, EncodedFrame(payload), self.starts())

    @cached_property
    def text(self) -> EncodedText:
        """The batch as JSON text."""
        events = [block.text(index) for block, indices in self.spans for index in indices]
        published = orjson.dumps(
            [time_ms for span in self.spans for time_ms in span.published_ms()]
        )
        body = b'"events":[%b],"published_ms":%b' % (b",".join(events), published)
        token = self._resume()
        if token:
            places = orjson.dumps(cursor(self._following(), self._kafka_topics))
            body += b',"cursor":%b,"resume":"%b"' % (places, token.encode())
        return EncodedText(self.count, body, self.starts(), token)

    def without(self, behind: Positions) -> "FrameBatch":
        """Return the events of partitions that are not in `behind`, as a batch.

        The batch ends at the offsets of `behind` in those partitions.
        """
        spans = [span for span in self.spans if span.block.at not in behind]
        ends = {at: end for at, end in self._ends().items() if at not in behind}
        return FrameBatch(
            self._log, self._kafka_topics, {**self._positions, **ends, **behind}, spans
        )

    def newest(self, count: int) -> "FrameBatch":
        """Return the newest `count` events as a batch with the same end."""
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
            batch = FrameBatch(
                self._log, self._kafka_topics, {**self._positions, **self._ends()}, reversed(spans)
            )
            self._newest[batch.count] = batch
        return batch

    def datagrams(self, limit: int) -> list[EncodedFrames]:
        """Return the batch in frames of at most `limit` bytes.

        An event that does not fit gets a larger frame of its own.
        """
        encoded_batches = self._datagrams.get(limit)
        if encoded_batches is None:
            encoded_batches = self._datagrams[limit] = [
                FrameBatch(self._log, (), {}, [span]).frame for span in self._small_spans(limit)
            ]
        return encoded_batches

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

    def _following(self) -> Positions:
        return {**self._positions, **self._ends()} if self._complete else self._positions

    def _resume(self) -> str:
        return (
            resume.encode(self._log, self._following(), self._kafka_topics)
            if self._kafka_topics
            else ""
        )

    def _ends(self) -> dict[Position, int]:
        return {block.at: block.offsets[indices[-1]] + 1 for block, indices in self.spans}

    def starts(self) -> dict[Position, int]:
        """Return the first offset of each partition."""
        return {block.at: block.offsets[indices[0]] for block, indices in reversed(self.spans)}

    def _runs(self) -> list[frames.Run]:
        runs: dict[Position, tuple[list[int], list[bytes], list[int]]] = {}
        for span in self.spans:
            offsets, values, published_ms = runs.setdefault(span.block.at, ([], [], []))
            offsets += span.offsets()
            values += span.values()
            published_ms += span.published_ms()
        return [
            frames.Run(*at, offsets, values, times) for at, (offsets, values, times) in runs.items()
        ]


def _pick(items: Sequence[_T], indices: Sequence[int]) -> Sequence[_T]:
    return (
        items[indices.start : indices.stop]
        if isinstance(indices, range)
        else [items[index] for index in indices]
    )
