from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Envelope(_message.Message):
    __slots__ = ("payload_type", "payload", "signatures")
    PAYLOAD_TYPE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    payload_type: str
    payload: bytes
    signatures: _containers.RepeatedCompositeFieldContainer[Signature]
    def __init__(self, payload_type: _Optional[str] = ..., payload: _Optional[bytes] = ..., signatures: _Optional[_Iterable[_Union[Signature, _Mapping]]] = ...) -> None: ...

class Signature(_message.Message):
    __slots__ = ("key_id", "sig")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    SIG_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    sig: bytes
    def __init__(self, key_id: _Optional[str] = ..., sig: _Optional[bytes] = ...) -> None: ...

class KeySet(_message.Message):
    __slots__ = ("epoch", "issued_at_ns", "keys", "thresholds")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    issued_at_ns: int
    keys: _containers.RepeatedCompositeFieldContainer[TrustedKey]
    thresholds: _containers.RepeatedCompositeFieldContainer[Threshold]
    def __init__(self, epoch: _Optional[int] = ..., issued_at_ns: _Optional[int] = ..., keys: _Optional[_Iterable[_Union[TrustedKey, _Mapping]]] = ..., thresholds: _Optional[_Iterable[_Union[Threshold, _Mapping]]] = ...) -> None: ...

class TrustedKey(_message.Message):
    __slots__ = ("key_id", "public_key", "roles", "not_before_ns", "not_after_ns")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    NOT_BEFORE_NS_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_NS_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    public_key: bytes
    roles: _containers.RepeatedScalarFieldContainer[str]
    not_before_ns: int
    not_after_ns: int
    def __init__(self, key_id: _Optional[str] = ..., public_key: _Optional[bytes] = ..., roles: _Optional[_Iterable[str]] = ..., not_before_ns: _Optional[int] = ..., not_after_ns: _Optional[int] = ...) -> None: ...

class Threshold(_message.Message):
    __slots__ = ("role", "signatures")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    role: str
    signatures: int
    def __init__(self, role: _Optional[str] = ..., signatures: _Optional[int] = ...) -> None: ...
