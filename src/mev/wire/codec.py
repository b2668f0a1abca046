"""From the bytes a client sent to the bytes Kafka carries.

JSON becomes Protobuf once, here. Protobuf bodies are checked and passed through: what a client encoded is what is published.
A body that cannot be split into records is refused whole; a record that is wrong is refused alone, with its place and reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
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
        return split_delimited(body)
    if content_type == NDJSON:
        return [line for line in body.split(b"\n") if line and not line.isspace()]
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise MalformedBodyError(_reason(error, place), line=error.lineno, column=error.colno) from None
    return document if isinstance(document, list) else [document]


def split_delimited(body: bytes) -> list[bytes]:
    """Return the messages of `body`, each behind its length as a varint.

    :raises MalformedBodyError: naming the byte at which a length is wrong.
    """
    messages: list[bytes] = []
    position, end = 0, len(body)
    while position < end:
        start, length = position, body[position]
        if length < 0x80:
            position += 1
        elif start + 1 < end and (second := body[start + 1]) < 0x80:
            length, position = length & 0x7F | second << 7, position + 2
        else:
            length, position = _long_varint(body, start)
        if length > end - position:
            raise MalformedBodyError(f"the length at byte {start} says {length} bytes, {end - position} are left", byte=start)
        messages.append(body[position : position + length])
        position += length
    return messages


def _long_varint(body: bytes, start: int) -> tuple[int, int]:
    """Return the varint at `start` and where it ends."""
    length = 0
    for place, byte in enumerate(body[start : start + _MAX_VARINT_BYTES]):
        length |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return length, start + place + 1
    raise MalformedBodyError(f"the length at byte {start} is not a varint", byte=start)


class Encoder:
    """Turns raw records of one event type into Kafka records; `max_record_bytes` bounds key and value together."""

    def __init__(self, event: EventType, *, max_record_bytes: int) -> None:
        self._event = event
        self._max_record_bytes = max_record_bytes
        self._exact_types = _exact_types(event.descriptor)
        self._key = attrgetter(event.key)
        self._also_required = set(event.required) - {event.key}

    def encode(self, raw: Sequence[object], content_type: str, into: Encoded, *, first_index: int = 0) -> None:
        """Encode `raw`, as :func:`split` gave it, appending to `into`; the index of ``raw[0]`` is `first_index`."""
        if content_type == PROTOBUF:
            self._encode_bytes(cast("Sequence[bytes]", raw), into, first_index)
            return
        convert = self._from_line if content_type == NDJSON else self._from_object
        for index, item in enumerate(raw, first_index):
            try:
                message = convert(item)
            except ValueError as error:
                into.rejected.append(Rejection(index, str(error)))
            else:
                self._accept(message, message.SerializeToString(), index, into)

    def _encode_bytes(self, raw: Sequence[bytes], into: Encoded, first_index: int) -> None:
        """Check messages and pass their bytes through: the path that carries the load, so one message object serves all."""
        message = self._event.message()
        parse, read_key, accept = message.ParseFromString, self._key, into.records.append
        limit = 0 if self._also_required else self._max_record_bytes
        for index, value in enumerate(raw, first_index):
            try:
                parse(value)
            except DecodeError as error:
                into.rejected.append(Rejection(index, f"not a {self._event.descriptor.name}: {error}"))
                continue
            key = read_key(message).encode()
            if key and len(key) + len(value) <= limit:
                accept({"key": key, "value": value})
            else:
                self._accept(message, value, index, into)

    def _accept(self, message: Message, value: bytes, index: int, into: Encoded) -> None:
        key = self._key(message).encode()
        if (objection := self._objection(message, key, value)) is None:
            into.records.append({"key": key, "value": value})
        else:
            into.rejected.append(Rejection(index, objection))

    def _objection(self, message: Message, key: bytes, value: bytes) -> str | None:
        for name in self._event.required:
            if not getattr(message, name):
                return f"{name}: missing or empty"
        size = len(key) + len(value)
        return f"the record has {size} bytes, {self._max_record_bytes} are allowed" if size > self._max_record_bytes else None

    def _from_line(self, line: object) -> Message:
        try:
            return self._from_object(orjson.loads(cast("bytes", line)))
        except orjson.JSONDecodeError as error:
            raise ValueError(_reason(error, f"column {error.colno}")) from None

    def _from_object(self, item: object) -> Message:
        try:
            for name, types in self._exact_types:
                if type(item.get(name)) not in types:  # type: ignore[attr-defined]
                    raise TypeError  # noqa: TRY301 - one way out for all that is not plain
            return self._event.message(**item)  # type: ignore[arg-type]
        except (AttributeError, TypeError, ValueError):
            return _from_canonical_json(item, self._event.message)


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


def _from_canonical_json(item: object, message_type: type[Message]) -> Message:
    """Take what Protobuf's JSON mapping allows beyond plain values (integers as strings, "NaN"), or say what is wrong."""
    if not isinstance(item, Mapping):
        raise ValueError(f"expected an object, got {json_name(item)}")  # noqa: TRY004 - every refusal of a record is a ValueError
    try:
        return json_format.ParseDict(dict(item), message_type())
    except (json_format.ParseError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(explain(cast("Descriptor", message_type.DESCRIPTOR), item) or str(error).splitlines()[0]) from None


def _reason(error: orjson.JSONDecodeError, place: str) -> str:
    return f"nested too deeply at {place}" if "depth limit" in error.msg else f"not JSON at {place}: {error.msg}"
