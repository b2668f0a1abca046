"""Events that travel together, and the bytes they become.

A batch belongs to a set of topics, not to a client: whatever it is encoded to is encoded once and shared.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import orjson

from mev.realtime import websocket
from mev.realtime.websocket import Opcode
from mev.wire import frames
from mev.wire.render import Render


class Topic(NamedTuple):
    """An event type as the hub sees it: its name for clients, its Kafka topic, its JSON."""

    name: str
    kafka_topic: str
    render: Render


class Block:
    """What one `push` brought; every subscription of its topic holds it by reference."""

    __slots__ = ("_texts", "offsets", "partition", "topic", "values")

    def __init__(self, topic: Topic, partition: int, offsets: Sequence[int], values: Sequence[bytes]) -> None:
        self.topic = topic
        self.partition = partition
        self.offsets = offsets
        self.values = values
        self._texts: dict[int, bytes] = {}

    def text(self, index: int) -> bytes:
        """Return an event as JSON, rendered the first time somebody asks."""
        text = self._texts.get(index)
        if text is None:
            text = self._texts[index] = self.topic.render(self.values[index])
        return text


class Span(NamedTuple):
    """A part of a block."""

    block: Block
    start: int
    stop: int


class Parcel(Protocol):
    """An encoded batch: `count` events in about `size` bytes."""

    @property
    def count(self) -> int:
        """Events in it."""

    @property
    def size(self) -> int:
        """Bytes it occupies while it waits."""

    def message(self, subscription_id: bytes, dropped: int) -> tuple[bytes | memoryview, ...]:
        """Return the WebSocket message, in parts to be written one after the other."""


@dataclass(frozen=True, slots=True)
class FrameParcel:
    """A `mev.v1.Frame` behind its WebSocket header."""

    count: int
    encoded: bytes
    header_size: int

    @property
    def size(self) -> int:
        """Bytes it occupies while it waits."""
        return len(self.encoded)

    def message(self, subscription_id: bytes, dropped: int) -> tuple[bytes | memoryview, ...]:
        """Return the shared bytes as they are, unless this client lost something: then with another header and a tail."""
        del subscription_id
        if not dropped:
            return (self.encoded,)
        tail = frames.dropped_field(dropped)
        payload = memoryview(self.encoded)[self.header_size :]
        return websocket.header(Opcode.BINARY, len(payload) + len(tail)), payload, tail


@dataclass(frozen=True, slots=True)
class TextParcel:
    """The middle of an `events` message: what does not depend on the client."""

    count: int
    body: bytes

    @property
    def size(self) -> int:
        """Bytes it occupies while it waits."""
        return len(self.body)

    def message(self, subscription_id: bytes, dropped: int) -> tuple[bytes | memoryview, ...]:
        """Put the subscription's id before it and its losses behind it."""
        return (websocket.frame(Opcode.TEXT, b'{"op":"events","id":%b,%b,"dropped":%d}' % (subscription_id, self.body, dropped)),)


class Batch:
    """Spans of blocks in the order they came; the order within a partition is kept."""

    __slots__ = ("_frame", "_spans", "_texts", "count")

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._frame: FrameParcel | None = None
        self._texts: dict[int, TextParcel] = {}
        self.count = 0

    def add(self, span: Span) -> None:
        """Append a span."""
        self._spans.append(span)
        self.count += span.stop - span.start

    def frame(self) -> FrameParcel:
        """Return the batch as Protobuf."""
        if self._frame is None:
            payload = frames.encode_frame(self._runs(), time.time_ns())
            header = websocket.header(Opcode.BINARY, len(payload))
            self._frame = FrameParcel(self.count, header + payload, len(header))
        return self._frame

    def text(self, newest: int) -> TextParcel:
        """Return the `newest` events of the batch as JSON; the cursor is always that of the whole batch."""
        parcel = self._texts.get(newest)
        if parcel is None:
            body = b'"events":[%b],"cursor":%b' % (b",".join(self._newest(newest)), orjson.dumps(self.cursor()))
            parcel = self._texts[newest] = TextParcel(newest, body)
        return parcel

    def cursor(self) -> dict[str, dict[str, int]]:
        """Return the next offset of each topic and partition, in the form a client will give back."""
        cursor: dict[str, dict[str, int]] = {}
        for block, _, stop in self._spans:
            cursor.setdefault(block.topic.name, {})[str(block.partition)] = block.offsets[stop - 1] + 1
        return cursor

    def _runs(self) -> list[frames.Run]:
        runs: dict[tuple[str, int], tuple[list[int], list[bytes]]] = {}
        for block, start, stop in self._spans:
            offsets, values = runs.setdefault((block.topic.kafka_topic, block.partition), ([], []))
            offsets += block.offsets[start:stop]
            values += block.values[start:stop]
        return [frames.Run(*key, offsets, values) for key, (offsets, values) in runs.items()]

    def _newest(self, count: int) -> list[bytes]:
        texts: list[bytes] = []
        for block, start, stop in reversed(self._spans):
            if count <= 0:
                break
            first = max(start, stop - count)
            texts[:0] = [block.text(index) for index in range(first, stop)]
            count -= stop - first
        return texts
