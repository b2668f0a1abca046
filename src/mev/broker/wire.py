"""Primitive types and error codes of the Kafka protocol, for versions before flexible encodings.

See https://kafka.apache.org/protocol.
"""

import struct
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import TypeVar

T = TypeVar("T")
_INT8, _INT16, _INT32, _INT64 = (struct.Struct(f">{code}") for code in "bhiq")


class ErrorCode(IntEnum):
    """Kafka error codes."""

    NONE = 0
    OFFSET_OUT_OF_RANGE = 1
    CORRUPT_MESSAGE = 2
    UNKNOWN_TOPIC_OR_PARTITION = 3
    MESSAGE_TOO_LARGE = 10
    OFFSET_METADATA_TOO_LARGE = 12
    INVALID_TOPIC = 17
    ILLEGAL_GENERATION = 22
    INCONSISTENT_GROUP_PROTOCOL = 23
    INVALID_GROUP_ID = 24
    UNKNOWN_MEMBER_ID = 25
    INVALID_SESSION_TIMEOUT = 26
    REBALANCE_IN_PROGRESS = 27
    TOPIC_AUTHORIZATION_FAILED = 29
    GROUP_AUTHORIZATION_FAILED = 30
    UNSUPPORTED_SASL_MECHANISM = 33
    UNSUPPORTED_VERSION = 35
    TOPIC_ALREADY_EXISTS = 36
    INVALID_PARTITIONS = 37
    OUT_OF_ORDER_SEQUENCE_NUMBER = 45
    INVALID_PRODUCER_EPOCH = 47
    TRANSACTIONAL_ID_AUTHORIZATION_FAILED = 53
    KAFKA_STORAGE_ERROR = 56
    SASL_AUTHENTICATION_FAILED = 58
    UNKNOWN_PRODUCER_ID = 59
    UNSUPPORTED_COMPRESSION_TYPE = 76
    GROUP_MAX_SIZE_REACHED = 81


class MalformedRequestError(Exception):
    """A request does not follow the protocol; the connection is closed."""


class RequestReader:
    """Reads a request field by field; a short request raises :class:`MalformedRequestError`.

    The header is read first: API key, version, correlation id and client id. `user` is the
    authenticated user of the connection. All arrays together have at most `most_items`.
    """

    def __init__(self, data: bytes, user: str = "", *, most_items: int | None = None) -> None:
        self._data = data
        self._left_items = len(data) if most_items is None else most_items
        self._at = 0
        self.user = user
        self.key, self.version, self.correlation_id = self.int16(), self.int16(), self.int32()
        self.client_id = self.nullable_string() or ""

    def int8(self) -> int:
        """Return an INT8."""
        return self._number(_INT8)

    def int16(self) -> int:
        """Return an INT16."""
        return self._number(_INT16)

    def int32(self) -> int:
        """Return an INT32."""
        return self._number(_INT32)

    def int64(self) -> int:
        """Return an INT64."""
        return self._number(_INT64)

    def boolean(self) -> bool:
        """Return a BOOLEAN."""
        return self.int8() != 0

    def string(self) -> str:
        """Return a STRING."""
        text = self.nullable_string()
        if text is None:
            raise MalformedRequestError("a string is null")
        return text

    def nullable_string(self) -> str | None:
        """Return a NULLABLE_STRING."""
        length = self.int16()
        if length < 0:
            return None
        try:
            return str(self._take(length), "utf-8")
        except UnicodeDecodeError:
            raise MalformedRequestError("a string is not UTF-8") from None

    def bytes_(self) -> memoryview:
        """Return BYTES without copying them; null counts as empty."""
        length = self.int32()
        return self._take(max(length, 0))

    def array(self, item: Callable[[], T]) -> list[T]:
        """Return an ARRAY of items read by `item`; null counts as empty."""
        return self.nullable_array(item) or []

    def nullable_array(self, item: Callable[[], T]) -> list[T] | None:
        """Return an ARRAY of items read by `item`, or None if it is null."""
        count = self.int32()
        if count > len(self._data) - self._at:  # an item has at least one byte
            raise MalformedRequestError("an array is longer than its request")
        self._left_items -= max(count, 0)
        if self._left_items < 0:
            raise MalformedRequestError("the arrays of the request have too many items")
        return None if count < 0 else [item() for _ in range(count)]

    def topics(self, partition: Callable[[str, int], T]) -> list[tuple[str, list[T]]]:
        """Return an ARRAY of topics with partitions; null counts as empty."""
        return self.nullable_topics(partition) or []

    def nullable_topics(
        self, partition: Callable[[str, int], T]
    ) -> list[tuple[str, list[T]]] | None:
        """Return an ARRAY of topics, each with its name and an ARRAY of partitions, or None.

        `partition` gets topic and number, and reads what follows. No partition occurs twice.
        """
        seen: set[tuple[str, int]] = set()

        def one(name: str) -> T:
            number = self.int32()
            if (name, number) in seen:
                raise MalformedRequestError("a partition occurs twice")
            seen.add((name, number))
            return partition(name, number)

        def topic() -> tuple[str, list[T]]:
            name = self.string()
            return name, self.array(lambda: one(name))

        return self.nullable_array(topic)

    def _number(self, kind: struct.Struct) -> int:
        try:
            (value,) = kind.unpack_from(self._data, self._at)
        except struct.error:
            raise MalformedRequestError("the request ends too early") from None
        self._at += kind.size
        return int(value)

    def _take(self, length: int) -> memoryview:
        taken = memoryview(self._data)[self._at : self._at + length]
        if len(taken) < length:
            raise MalformedRequestError("the request ends too early")
        self._at += length
        return taken


class ResponseWriter:
    """Collects a response field by field."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def int8(self, value: int) -> "ResponseWriter":
        """Add an INT8."""
        self.parts.append(_INT8.pack(value))
        return self

    def int16(self, value: int) -> "ResponseWriter":
        """Add an INT16."""
        self.parts.append(_INT16.pack(value))
        return self

    def int32(self, value: int) -> "ResponseWriter":
        """Add an INT32."""
        self.parts.append(_INT32.pack(value))
        return self

    def int64(self, value: int) -> "ResponseWriter":
        """Add an INT64."""
        self.parts.append(_INT64.pack(value))
        return self

    def string(self, text: str | None) -> "ResponseWriter":
        """Add a NULLABLE_STRING."""
        if text is None:
            return self.int16(-1)
        data = text.encode()
        self.parts += _INT16.pack(len(data)), data
        return self

    def bytes_(self, data: bytes) -> "ResponseWriter":
        """Add BYTES."""
        self.parts += _INT32.pack(len(data)), data
        return self

    def array(self, items: Sequence[T], item: Callable[[T], object]) -> "ResponseWriter":
        """Add an ARRAY; `item` writes one of `items` to this writer."""
        self.int32(len(items))
        for each in items:
            item(each)
        return self

    def framed(self, correlation_id: int) -> bytes:
        """Return the response with its length and header."""
        size = sum(map(len, self.parts)) + 4
        return b"".join((_INT32.pack(size), _INT32.pack(correlation_id), *self.parts))
