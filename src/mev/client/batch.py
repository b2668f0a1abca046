"""What a subscriber is given: events of one frame, where they stand in the log, and what was lost before them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any, cast

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from mev.client.cursor import Cursor
from mev.client.errors import UndecodableEventError
from mev.wire.frames import offsets_of
from mev.wire.pb.stream_pb2 import Frame, Slice
from mev.wire.registry import BY_TOPIC, EventType

_EVENTS_FIELD = Slice.DESCRIPTOR.fields_by_name["events"].number


@dataclass(frozen=True, slots=True)
class Gap:
    """Events that are in the log no more: offsets `start` up to, not including, `stop` of a partition of an event type."""

    topic: str
    partition: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Record:
    """One event as it was published; `topic` is its event type."""

    topic: str
    partition: int
    offset: int
    value: bytes

    @property
    def message(self) -> Message:
        """The event, decoded.

        :raises UndecodableEventError: when it is not what its topic says.
        """
        try:
            return _event_type(self.topic).message.FromString(self.value)
        except DecodeError as error:
            place = f"{self.topic}, partition {self.partition}, offset {self.offset}"
            raise UndecodableEventError(
                f"the event at {place} cannot be decoded ({error}); read batch.records() and pass over it",
                topic=self.topic,
                partition=self.partition,
                offset=self.offset,
            ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Events of one frame, in the order of each partition, decoded when they are looked at.

    A batch without events tells of losses: `dropped` by the subscription's own policy, `gaps` that retention made, or `reset`: the server's
    log is another one than the cursor's, and all of it follows from its earliest event.
    """

    subscription: str
    cursor: Cursor  # after this batch, complete: to start from it misses nothing and repeats nothing
    dropped: int = 0  # events lost just before this batch because the subscriber was slow, or above its max_rate
    gaps: tuple[Gap, ...] = ()
    reset: bool = False
    queued: int = 0  # events that wait behind this batch in the server
    lag_ms: int = 0  # how long this batch waited for the subscriber in the server
    sent_at_ns: int = 0
    slices: tuple[Slice, ...] = ()
    size: int = 0  # bytes on the wire

    @property
    def lost(self) -> int:
        """How many events are known to be lost just before this batch; after a `reset` nobody can count them."""
        return self.dropped + sum(map(len, self.gaps))

    def __len__(self) -> int:
        return sum(len(part.events) for part in self.slices)

    def __bool__(self) -> bool:
        return True  # a batch that tells of a loss alone is not nothing

    def __iter__(self) -> Iterator[Any]:
        """Give each event as its Protobuf message.

        A slice is decoded at once, which is several times as fast as event by event; an event that is kept keeps its slice in memory.

        :raises UndecodableEventError: at an event that is not what its topic says.
        """
        return chain.from_iterable(map(_messages, self.slices))

    def records(self) -> Iterator[Record]:
        """Give each event with its place and its bytes."""
        for part in self.slices:
            topic = topic_name(part.topic)
            for offset, value in zip(offsets_of(part), part.events, strict=True):
                yield Record(topic, part.partition, offset, value)


def steps_of(frame: Frame) -> Iterator[tuple[str, int, int]]:
    """Give event type, partition and next offset of each slice."""
    for part in frame.slices:
        last = part.first_offset + (sum(part.offset_step) if part.offset_step else len(part.events) - 1)
        yield topic_name(part.topic), part.partition, last + 1


def topic_name(topic: str) -> str:
    """Return the event type of a Kafka topic, known here or not."""
    event = BY_TOPIC.get(topic)
    return event.name if event else topic.removeprefix("mev.").rpartition(".v")[0] or topic


def _event_type(name: str) -> EventType:
    event = BY_TOPIC.get(f"mev.{name}.v1")
    if event is None:
        raise UndecodableEventError(
            f"the event type {name!r} is newer than this package; upgrade it, or read the bytes of batch.records()", topic=name
        )
    return event


def _messages(part: Slice) -> Iterable[Message]:
    try:
        whole = _slice_class(_event_type(topic_name(part.topic))).FromString(part.SerializeToString())
    except DecodeError:
        return _one_by_one(part)
    return cast("Iterable[Message]", cast("Any", whole).events)


def _one_by_one(part: Slice) -> Iterator[Message]:
    """Give what comes before the event that is wrong, and say which one it is."""
    name = topic_name(part.topic)
    for offset, value in zip(offsets_of(part), part.events, strict=True):
        yield Record(name, part.partition, offset, value).message


@cache
def _slice_class(event: EventType) -> type[Message]:
    """Return a message like `Slice` whose events are typed: on the wire both are the same bytes."""
    name = f"{event.descriptor.name}Slice"
    file = descriptor_pb2.FileDescriptorProto(
        name=f"mev/client/{event.name}.proto", package="mev.client", syntax="proto3", dependency=[event.descriptor.file.name]
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
