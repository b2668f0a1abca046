from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class AuditRecord(_message.Message):
    __slots__ = ("index", "log_id", "at_ns", "actor", "session", "remote", "action", "object", "outcome", "details_json", "correlation_id")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    AT_NS_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    REMOTE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    DETAILS_JSON_FIELD_NUMBER: _ClassVar[int]
    CORRELATION_ID_FIELD_NUMBER: _ClassVar[int]
    index: int
    log_id: str
    at_ns: int
    actor: str
    session: str
    remote: str
    action: str
    object: str
    outcome: str
    details_json: str
    correlation_id: str
    def __init__(self, index: _Optional[int] = ..., log_id: _Optional[str] = ..., at_ns: _Optional[int] = ..., actor: _Optional[str] = ..., session: _Optional[str] = ..., remote: _Optional[str] = ..., action: _Optional[str] = ..., object: _Optional[str] = ..., outcome: _Optional[str] = ..., details_json: _Optional[str] = ..., correlation_id: _Optional[str] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("log_id", "size", "root_hash", "at_ns")
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    ROOT_HASH_FIELD_NUMBER: _ClassVar[int]
    AT_NS_FIELD_NUMBER: _ClassVar[int]
    log_id: str
    size: int
    root_hash: bytes
    at_ns: int
    def __init__(self, log_id: _Optional[str] = ..., size: _Optional[int] = ..., root_hash: _Optional[bytes] = ..., at_ns: _Optional[int] = ...) -> None: ...
