from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ResumeToken(_message.Message):
    __slots__ = ("log", "topics")
    LOG_FIELD_NUMBER: _ClassVar[int]
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    log: int
    topics: _containers.RepeatedCompositeFieldContainer[ResumeTopic]
    def __init__(self, log: _Optional[int] = ..., topics: _Optional[_Iterable[_Union[ResumeTopic, _Mapping]]] = ...) -> None: ...

class ResumeTopic(_message.Message):
    __slots__ = ("type", "next")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    type: str
    next: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, type: _Optional[str] = ..., next: _Optional[_Iterable[int]] = ...) -> None: ...
