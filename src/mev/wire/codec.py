"""From the bytes a client sent to the bytes Kafka carries.

JSON becomes Protobuf once, here. Protobuf bodies are checked and passed through: what a client encoded is what is published.
A body that cannot be split into records is refused whole; a record that is wrong is refused alone, with its place and reason.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import orjson
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from mev.core.errors import InvalidInputError
from mev.wire.explain import explain, json_name
from mev.wire.registry import EventType, Record

JSON = "application/json"
NDJSON = "application/x-ndjson"
PROTOBUF = "application/x-protobuf"
CONTENT_TYPES = {
    JSON: JSON,
    NDJSON: NDJSON,
    "application/ndjson": NDJSON,
    "application/jsonl": NDJSON,
    PROTOBUF: PROTOBUF,
    "application/protobuf": PROTOBUF,
}
_MAX_VARINT_BYTES = 10


class MalformedBodyError(InvalidInputError):
    """The body cannot be split into records."""

    code = "malformed_body"


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record that was refused: its index in the body, and why."""

    index: int
    reason: str


@dataclass(slots=True)
class Encoded:
    """Records ready for Kafka and the ones that were refused."""

    records: list[Record] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)


def split(body: bytes, content_type: str) -> Sequence[object]:
    """Split `body` into raw records: parsed objects for JSON, lines for NDJSON, message bytes for Protobuf.

    :raises MalformedBodyError: with the place, when it cannot be done.
    """
    if content_type == PROTOBUF:
        return list(split_delimited(body))
    if content_type == NDJSON:
        return [line for line in body.split(b"\n") if line and not line.isspace()]
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedBodyError(f"not JSON at {_place(error)}: {error.msg}", line=error.lineno, column=error.colno) from None
    return document if isinstance(document, list) else [document]


def split_delimited(body: bytes) -> Iterator[bytes]:
    """Yield the messages of `body`, each behind its length as a varint.

    :raises MalformedBodyError: naming the byte at which a length is wrong.
    """
    position, end = 0, len(body)
    while position < end:
        start, length, shift = position, 0, 0
        while True:
            if position == end or shift == 7 * _MAX_VARINT_BYTES:
                raise MalformedBodyError(f"the length at byte {start} is not a varint", byte=start)
            byte = body[position]
            position += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        if length > end - position:
            raise MalformedBodyError(f"the length at byte {start} says {length} bytes, {end - position} are left", byte=start)
        yield body[position : position + length]
        position += length


class Encoder:
    """Turns raw records of one event type into Kafka records; `max_record_bytes` bounds key and value together."""

    def __init__(self, event: EventType, *, max_record_bytes: int) -> None:
        self._event = event
        self._max_record_bytes = max_record_bytes
        self._exact_types = _exact_types(event.descriptor)

    def encode(self, raw: Sequence[object], content_type: str, into: Encoded, *, first_index: int = 0) -> None:
        """Encode `raw`, as :func:`split` gave it, appending to `into`; the index of ``raw[0]`` is `first_index`."""
        convert = {PROTOBUF: self._from_bytes, NDJSON: self._from_line, JSON: self._from_object}[content_type]
        message_type, key = self._event.message, self._event.key
        required = [name for name in self._event.required if name != key]
        limit, accept = self._max_record_bytes, into.records.append
        for index, item in enumerate(raw, first_index):
            try:
                message, value = convert(item, message_type)
                key_bytes = getattr(message, key).encode()
                if not key_bytes:
                    raise _missing(key)
                for name in required:
                    if not getattr(message, name):
                        raise _missing(name)
                if len(key_bytes) + len(value) > limit:
                    raise _too_large(len(key_bytes) + len(value), limit)
            except ValueError as error:
                into.rejected.append(Rejection(index, str(error)))
            else:
                accept({"key": key_bytes, "value": value})

    @staticmethod
    def _from_bytes(item: object, message_type: type[Message]) -> tuple[Message, bytes]:
        assert isinstance(item, bytes)  # noqa: S101 - narrows for the type checker
        try:
            return message_type.FromString(item), item
        except DecodeError as error:
            raise ValueError(f"not a {message_type.DESCRIPTOR.name}: {error}") from None

    def _from_line(self, item: object, message_type: type[Message]) -> tuple[Message, bytes]:
        assert isinstance(item, bytes)  # noqa: S101 - narrows for the type checker
        try:
            return self._from_object(orjson.loads(item), message_type)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"not JSON at column {error.colno}: {error.msg}") from None

    def _from_object(self, item: object, message_type: type[Message]) -> tuple[Message, bytes]:
        try:
            for name, types in self._exact_types:
                if type(item.get(name)) not in types:  # type: ignore[attr-defined]
                    raise TypeError  # noqa: TRY301 - one way out for all that is not plain
            message = message_type(**item)  # type: ignore[arg-type]
        except (AttributeError, TypeError, ValueError):
            message = _from_canonical_json(item, message_type)
        return message, message.SerializeToString()


def _exact_types(descriptor: Descriptor) -> tuple[tuple[str, tuple[type, ...]], ...]:
    """Return the fields whose JSON type a message's constructor does not check: it takes "ab" for a list and 24 for a bool."""
    exact: list[tuple[str, tuple[type, ...]]] = []
    for inner in descriptor.fields:
        if inner.is_repeated:
            is_map = inner.message_type is not None and inner.message_type.GetOptions().map_entry
            exact.append((inner.name, (dict if is_map else list, type(None))))
        elif inner.type == FieldDescriptor.TYPE_BOOL:
            exact.append((inner.name, (bool, type(None))))
    return tuple(exact)


def _missing(name: str) -> ValueError:
    return ValueError(f"{name}: missing or empty")


def _too_large(size: int, limit: int) -> ValueError:
    return ValueError(f"the record has {size} bytes, {limit} are allowed")


def _from_canonical_json(item: object, message_type: type[Message]) -> Message:
    """Take what Protobuf's JSON mapping allows beyond plain values (integers as strings, "NaN"), or say what is wrong."""
    if not isinstance(item, Mapping):
        raise ValueError(f"expected an object, got {json_name(item)}")  # noqa: TRY004 - every refusal of a record is a ValueError
    try:
        return json_format.ParseDict(dict(item), message_type())
    except (json_format.ParseError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(explain(cast("Descriptor", message_type.DESCRIPTOR), item) or str(error).splitlines()[0]) from None


def _place(error: orjson.JSONDecodeError) -> str:
    return f"line {error.lineno} column {error.colno}"
