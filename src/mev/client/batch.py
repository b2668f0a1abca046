"""Batches of events as the subscriber receives them, with their cursor and their losses."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any, cast

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from mev.client.cursor import Cursor
from mev.client.errors import UndecodableEventError
from mev.wire.frames import offsets_of, published_ms_of
from mev.wire.pb.stream_pb2 import Frame, Slice
from mev.wire.registry import BY_TOPIC, EventType

_EVENTS_FIELD = Slice.DESCRIPTOR.fields_by_name["events"].number


@dataclass(frozen=True, slots=True)
class Gap:
    """Events that retention has removed: offsets `start` to `stop` (exclusive) of one partition."""

    topic: str
    partition: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Record:
    """One event as published; `topic` is its event type."""

    topic: str
    partition: int
    offset: int
    value: bytes
    published_ms: int = 0  # since the epoch; 0 when the server does not send it

    @property
    def message(self) -> Message:
        """The decoded event.

        :raises UndecodableEventError: when the bytes do not match the event type.
        """
        try:
            return _event_type(self.topic).message.FromString(self.value)
        except DecodeError as error:
            place = f"{self.topic}, partition {self.partition}, offset {self.offset}"
            raise UndecodableEventError(
                f"the event at {place} cannot be decoded ({error}); read batch.records() and "
                "pass over it",
                topic=self.topic,
                partition=self.partition,
                offset=self.offset,
            ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Events of one frame, in offset order per partition, decoded on access.

    A batch with `snapshot_left` is a part of a snapshot: the newest event of each key, all of them
    older than its cursor. A batch without events reports losses: `dropped` by the subscription's
    own policy, `gaps` left by retention, or `reset`: the server's log is not the cursor's, and all
    of it follows from its earliest event.
    """

    subscription: str
    # The cursor after this batch: a subscription that starts here misses and repeats nothing.
    cursor: Cursor
    resume: str = ""  # the same position as the server's token, for `Resume`
    # Events dropped just before this batch: the subscriber was slow, or above its max_rate.
    dropped: int = 0
    gaps: tuple[Gap, ...] = ()
    reset: bool = False
    queued: int = 0  # events that wait in the server after this batch
    lag_ms: int = 0  # how long this batch waited in the server
    sent_at_ns: int = 0
    slices: tuple[Slice, ...] = ()
    size: int = 0  # bytes on the wire
    snapshot_left: int | None = (
        None  # in a batch of a snapshot: how many events of it are still to come
    )

    @property
    def lost(self) -> int:
        """Number of events known to be lost just before this batch; unknown after a `reset`."""
        return self.dropped + sum(map(len, self.gaps))

    def __len__(self) -> int:
        return sum(len(part.events) for part in self.slices)

    def __bool__(self) -> bool:
        return True  # a batch that only reports a loss is true too

    def __iter__(self) -> Iterator[Any]:
        """Return an iterator over the events as Protobuf messages.

        A slice is decoded as a whole, which is several times as fast as event by event; a reference
        to one event holds its slice in memory.

        :raises UndecodableEventError: at an event that does not match its event type.
        """
        return chain.from_iterable(map(_messages, self.slices))

    def records(self) -> Iterator[Record]:
        """Yield each event with its position and its bytes."""
        for part in self.slices:
            topic = topic_name(part.topic)
            for offset, value, time_ms in zip(
                offsets_of(part), part.events, published_ms_of(part), strict=True
            ):
                yield Record(topic, part.partition, offset, value, time_ms)


def steps_of(frame: Frame) -> Iterator[tuple[str, int, int]]:
    """Yield event type, partition and next offset of each slice."""
    for part in frame.slices:
        last = part.first_offset + (
            sum(part.offset_step) if part.offset_step else len(part.events) - 1
        )
        yield topic_name(part.topic), part.partition, last + 1


def topic_name(topic: str) -> str:
    """Return the event type of a Kafka topic, also of one unknown to this version."""
    event = BY_TOPIC.get(topic)
    return event.name if event else topic.removeprefix("mev.").rpartition(".v")[0] or topic


def _event_type(name: str) -> EventType:
    event = BY_TOPIC.get(f"mev.{name}.v1")
    if event is None:
        raise UndecodableEventError(
            f"the event type {name!r} is newer than this package; upgrade it, or read the "
            "bytes of batch.records()",
            topic=name,
        )
    return event


def _messages(part: Slice) -> Iterable[Message]:
    try:
        whole = _slice_class(_event_type(topic_name(part.topic))).FromString(
            part.SerializeToString()
        )
    except DecodeError:
        return _one_by_one(part)
    return cast("Iterable[Message]", cast("Any", whole).events)


def _one_by_one(part: Slice) -> Iterator[Message]:
    """Yield the events before the undecodable one, then raise its error."""
    name = topic_name(part.topic)
    for offset, value in zip(offsets_of(part), part.events, strict=True):
        yield Record(name, part.partition, offset, value).message


@cache
def _slice_class(event: EventType) -> type[Message]:
    """Return a message class like `Slice` with typed events; both have the same encoding."""
    name = f"{event.descriptor.name}Slice"
    file = descriptor_pb2.FileDescriptorProto(
        name=f"mev/client/{event.name}.proto",
        package="mev.client",
        syntax="proto3",
        dependency=[event.descriptor.file.name],
    )
    file.message_type.add(name=name).field.add(
        name="events",
        number=_EVENTS_FIELD,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE,
        label=descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED,
        type_name=f".{event.descriptor.full_name}",
    )
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"mev.client.{name}"))
