from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("slices", "sent_at_ns", "dropped", "queued", "lag_ms", "subscription", "sequence", "resume", "dropped_total", "snapshot_left")
    SLICES_FIELD_NUMBER: _ClassVar[int]
    SENT_AT_NS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    LAG_MS_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIPTION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    DROPPED_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_LEFT_FIELD_NUMBER: _ClassVar[int]
    slices: _containers.RepeatedCompositeFieldContainer[Slice]
    sent_at_ns: int
    dropped: int
    queued: int
    lag_ms: int
    subscription: str
    sequence: int
    resume: str
    dropped_total: int
    snapshot_left: int
    def __init__(self, slices: _Optional[_Iterable[_Union[Slice, _Mapping]]] = ..., sent_at_ns: _Optional[int] = ..., dropped: _Optional[int] = ..., queued: _Optional[int] = ..., lag_ms: _Optional[int] = ..., subscription: _Optional[str] = ..., sequence: _Optional[int] = ..., resume: _Optional[str] = ..., dropped_total: _Optional[int] = ..., snapshot_left: _Optional[int] = ...) -> None: ...

class Slice(_message.Message):
    __slots__ = ("topic", "partition", "first_offset", "offset_step", "events", "first_published_ms", "published_step_ms")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    FIRST_OFFSET_FIELD_NUMBER: _ClassVar[int]
    OFFSET_STEP_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    FIRST_PUBLISHED_MS_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_STEP_MS_FIELD_NUMBER: _ClassVar[int]
    topic: str
    partition: int
    first_offset: int
    offset_step: _containers.RepeatedScalarFieldContainer[int]
    events: _containers.RepeatedScalarFieldContainer[bytes]
    first_published_ms: int
    published_step_ms: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, topic: _Optional[str] = ..., partition: _Optional[int] = ..., first_offset: _Optional[int] = ..., offset_step: _Optional[_Iterable[int]] = ..., events: _Optional[_Iterable[bytes]] = ..., first_published_ms: _Optional[int] = ..., published_step_ms: _Optional[_Iterable[int]] = ...) -> None: ...
