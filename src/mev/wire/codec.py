"""Encoding of request bodies as Kafka records.

JSON is converted to Protobuf here, once. Protobuf messages are checked and passed through
unchanged. A body that cannot be split into records is refused as a whole; an invalid record is
refused alone, with its index and reason.
"""

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, methodcaller
from typing import Any, cast

import orjson
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from mev.core.clock import now_ns
from mev.core.errors import InvalidInputError
from mev.wire.explain import FLOAT_LIMIT, explain, inexact_number, json_name
from mev.wire.registry import EventType, KafkaRecord
from mev.wire.times import TimeBounds, time_fields

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
# Records encoded before the event loop runs other work: about half a millisecond.
_PART_RECORDS = {JSON: 128, NDJSON: 128, PROTOBUF: 512}
Check = Callable[[Any], bool]
_MAX_VARINT_BYTES = 10
_INTEGERS_64 = frozenset({FieldDescriptor.TYPE_SINT64, FieldDescriptor.TYPE_UINT64})
_NUMBERS, _INTEGER = frozenset({float, int}), frozenset({int})
_FLOAT = struct.Struct("<f")


class MalformedBodyError(InvalidInputError):
    """The body cannot be split into records."""

    code = "malformed_body"


@dataclass(frozen=True, slots=True)
class Rejection:
    """A refused record: its index in the body, and the reason."""

    index: int
    reason: str


@dataclass(slots=True)
class Encoded:
    """Records ready for Kafka, and the refused ones."""

    records: list[KafkaRecord] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)

    def clear(self) -> None:
        """Remove all records."""
        self.records.clear()
        self.rejected.clear()


def split(body: bytes, content_type: str) -> Sequence[object]:
    """Split `body` into raw records: parsed objects for JSON, lines for NDJSON, bytes for Protobuf.

    :raises MalformedBodyError: if that fails, naming the place.
    """
    if content_type == PROTOBUF:
        return split_delimited(body)
    if content_type == NDJSON:
        return [line for line in body.split(b"\n") if line and not line.isspace()]
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise MalformedBodyError(
            _reason(error, place), line=error.lineno, column=error.colno
        ) from None
    return document if isinstance(document, list) else [document]


def split_delimited(body: bytes) -> list[bytes]:
    """Return the length-delimited messages of `body`.

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
            raise MalformedBodyError(
                f"the length at byte {start} says {length} bytes, {end - position} are left",
                byte=start,
            )
        messages.append(body[position : position + length])
        position += length
    return messages


def _long_varint(body: bytes, start: int) -> tuple[int, int]:
    """Return the varint at `start` and the index after it."""
    length = 0
    for place, byte in enumerate(body[start : start + _MAX_VARINT_BYTES]):
        length |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return length, start + place + 1
    raise MalformedBodyError(f"the length at byte {start} is not a varint", byte=start)


class Encoder:
    """Encodes bodies of one event type as Kafka records, in Python.

    `max_record_bytes` limits the key and value together; `times` is the valid range of times.
    :func:`mev.wire.encoding.encoder` selects between this one and the native one.
    """

    def __init__(self, event: EventType, *, max_record_bytes: int, times: TimeBounds) -> None:
        self._event = event
        self._times = times
        self._time_fields = time_fields(event)
        self._read_times = _reader(self._time_fields)
        self._max_record_bytes = max_record_bytes
        self._exact_types = _exact_types(event.descriptor)
        self._checks = _checks(event.descriptor)
        self._key = attrgetter(event.key)
        # The entries of a map have one order, so that equal records have equal bytes.
        self._serialize: Callable[[Message], bytes] = (
            methodcaller("SerializeToString", deterministic=True)
            if _has_maps(event.descriptor)
            else methodcaller("SerializeToString")
        )
        self._also_required = set(event.required) - {event.key}

    def encode(self, body: bytes, content_type: str, into: Encoded) -> Iterator[None]:
        """Encode `body` into `into` in parts; the returned iterator has an item between two parts.

        :raises MalformedBodyError: when the body cannot be split into records.
        """
        raw, size = split(body, content_type), _PART_RECORDS[content_type]
        for start in range(0, len(raw), size):
            if start:
                yield
            self.encode_records(raw[start : start + size], content_type, into, first_index=start)

    def encode_records(
        self, raw: Sequence[object], content_type: str, into: Encoded, *, first_index: int = 0
    ) -> None:
        """Encode `raw`, as returned by :func:`split`, and append the results to `into`.

        `first_index` is the index of ``raw[0]`` in the body.
        """
        if content_type == PROTOBUF:
            self._encode_bytes(cast("Sequence[bytes]", raw), into, first_index)
            return
        convert, record_of, accept = (
            self._from_line if content_type == NDJSON else self._from_object,
            self._fast(),
            into.records.append,
        )
        serialize = self._serialize
        for index, item in enumerate(raw, first_index):
            try:
                message = convert(item)
            except ValueError as error:
                into.rejected.append(Rejection(index, str(error)))
                continue
            value = serialize(message)
            if (record := record_of(message, value)) is not None:
                accept(record)
            else:
                self._accept(message, value, index, into)

    def _encode_bytes(self, raw: Sequence[bytes], into: Encoded, first_index: int) -> None:
        """Check messages and pass their bytes through.

        This is the path with the highest load: one message object is reused for all records.
        """
        message = self._event.message()
        parse, record_of, accept = message.ParseFromString, self._fast(), into.records.append
        for index, value in enumerate(raw, first_index):
            try:
                parse(value)
            except DecodeError as error:
                into.rejected.append(
                    Rejection(index, f"not a {self._event.descriptor.name}: {error}")
                )
                continue
            if (record := record_of(message, value)) is not None:
                accept(record)
            else:
                self._accept(message, value, index, into)

    def _fast(self) -> Callable[[Message, bytes], KafkaRecord | None]:
        """Return a function that gives the record of a valid message, without a full check.

        It may return None; then the message needs the full check.
        """
        read_key, read_times, earliest_ns = self._key, self._read_times, self._times.earliest_ns
        latest_ns = self._times.latest_ns(now_ns())
        limit = 0 if self._also_required else self._max_record_bytes

        def record_of(message: Message, value: bytes) -> KafkaRecord | None:
            key = read_key(message).encode()
            if not key or len(key) + len(value) > limit:
                return None
            for time_ns in read_times(message):
                if time_ns and not earliest_ns <= time_ns <= latest_ns:
                    return None
            return {"key": key, "value": value}

        return record_of

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
        if (reason := self._time_objection(message)) is not None:
            return reason
        size = len(key) + len(value)
        return (
            f"the record has {size} bytes, {self._max_record_bytes} are allowed"
            if size > self._max_record_bytes
            else None
        )

    def _time_objection(self, message: Message) -> str | None:
        """Return the problem with the first time out of range; 0 means that the time is unknown."""
        for name, time_ns in zip(self._time_fields, self._read_times(message), strict=True):
            if time_ns and not self._times.earliest_ns <= time_ns <= self._times.latest_ns(
                now_ns()
            ):
                return self._times.objection(name, time_ns, now_ns())
        return None

    def _from_line(self, line: object) -> Message:
        try:
            return self._from_object(orjson.loads(cast("bytes", line)))
        except orjson.JSONDecodeError as error:
            raise ValueError(_reason(error, f"column {error.colno}")) from None

    def _from_object(self, item: object) -> Message:
        try:
            for name, types in self._exact_types:
                if type(item.get(name)) not in types:  # type: ignore[attr-defined]
                    raise TypeError  # noqa: TRY301 - one path for all values that need conversion
            for name, is_plain in self._checks:
                if (value := item.get(name)) and not is_plain(value):  # type: ignore[attr-defined]
                    raise TypeError  # noqa: TRY301 - as above
            return self._event.message(**item)  # type: ignore[arg-type]
        except (AttributeError, TypeError, ValueError):
            return _from_canonical_json(item, self._event.message)


def _has_maps(descriptor: Descriptor) -> bool:
    return any(
        inner.message_type is not None and inner.message_type.GetOptions().map_entry
        for inner in descriptor.fields
    )


def _reader(names: Sequence[str]) -> Callable[[Message], tuple[int, ...]]:
    """Return a function that reads the fields `names`."""
    if len(names) == 1:
        read_one = attrgetter(names[0])
        return lambda message: (read_one(message),)
    return attrgetter(*names) if names else lambda _message: ()


def _exact_types(descriptor: Descriptor) -> tuple[tuple[str, tuple[type, ...]], ...]:
    """Return the fields whose JSON type is not checked by the message's constructor.

    The constructor accepts "ab" for a list, 24 for a bool, true for 1.0, and a float for an
    integer. The JSON parser keeps only 53 bits of a number with a point or an exponent, or beyond
    64 bits.
    """
    exact: list[tuple[str, tuple[type, ...]]] = []
    for inner in descriptor.fields:
        if inner.is_repeated:
            is_map = inner.message_type is not None and inner.message_type.GetOptions().map_entry
            exact.append((inner.name, (dict if is_map else list, type(None))))
        elif inner.type == FieldDescriptor.TYPE_BOOL:
            exact.append((inner.name, (bool, type(None))))
        elif inner.type in _INTEGERS_64:
            exact.append((inner.name, (int, type(None))))
        elif inner.type in {FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT}:
            exact.append((inner.name, (float, int, type(None))))
    return tuple(exact)


def _checks(descriptor: Descriptor) -> tuple[tuple[str, Check], ...]:
    """Return checks for the fields whose elements or range the constructor does not check."""
    found = ((inner.name, _check(inner)) for inner in descriptor.fields)
    return tuple((name, check) for name, check in found if check is not None)


def _check(field: FieldDescriptor) -> Check | None:
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            check = _check_of_list(field.message_type.fields_by_name["value"])
            return check and (lambda entries: check(entries.values()))
        return _check_of_messages(field.message_type)
    if field.is_repeated:
        return _check_of_list(field)
    if field.type == FieldDescriptor.TYPE_FLOAT:
        return lambda value: -FLOAT_LIMIT < value < FLOAT_LIMIT
    return None


def _check_of_list(field: FieldDescriptor) -> Check | None:
    if field.type == FieldDescriptor.TYPE_FLOAT:
        # The norm is at least as large as each value, and the fastest way to check all of them.
        return lambda values: (
            math.hypot(*values) < FLOAT_LIMIT and _NUMBERS.issuperset(map(type, values))
        )
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return lambda values: _NUMBERS.issuperset(map(type, values))
    if field.type in _INTEGERS_64:
        return lambda values: _INTEGER.issuperset(map(type, values))
    return None


def _check_of_messages(descriptor: Descriptor) -> Check:
    integers = [inner.name for inner in descriptor.fields if inner.type in _INTEGERS_64]

    def is_plain(messages: Any) -> bool:
        for one in messages:
            for name in integers:
                if type(one.get(name)) is float:
                    return False
        return True

    return is_plain


def _from_canonical_json(item: object, message_type: type[Message]) -> Message:
    """Convert what Protobuf's JSON mapping allows beyond plain values, or raise the reason.

    Examples are integers as strings, and "NaN".
    """
    if not isinstance(item, Mapping):
        # Every refusal of a record is a ValueError.
        raise ValueError(f"expected an object, got {json_name(item)}")  # noqa: TRY004
    if (reason := inexact_number(cast("Descriptor", message_type.DESCRIPTOR), item)) is not None:
        raise ValueError(reason)
    try:
        return json_format.ParseDict(
            _rounded(cast("Descriptor", message_type.DESCRIPTOR), item), message_type()
        )
    except (json_format.ParseError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(
            explain(cast("Descriptor", message_type.DESCRIPTOR), item) or str(error).splitlines()[0]
        ) from None


def _rounded(descriptor: Descriptor, item: Mapping[object, object]) -> dict[str, object]:
    """Return `item` with the values of its `float` fields rounded to 32 bits.

    Protobuf's own parser refuses the largest float in its shortest form, 3.4028235e+38, which is a
    little larger as a double.
    """
    fields = {**descriptor.fields_by_camelcase_name, **descriptor.fields_by_name}
    floats = {name for name, field in fields.items() if field.type == FieldDescriptor.TYPE_FLOAT}
    return {
        str(name): _as_float32(value) if name in floats else value for name, value in item.items()
    }


def _as_float32(value: object) -> object:
    if isinstance(value, list):
        return [_as_float32(one) for one in value]
    return _FLOAT.unpack(_FLOAT.pack(value))[0] if isinstance(value, float) else value


def _reason(error: orjson.JSONDecodeError, place: str) -> str:
    return (
        f"nested too deeply at {place}"
        if "depth limit" in error.msg
        else f"not JSON at {place}: {error.msg}"
    )
