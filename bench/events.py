"""Bodies as clients send them: simulated opportunities of two steps with all their features."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import orjson
from google.protobuf.message import Message

from mev.simulate.model import Market
from mev.wire.pb.events_pb2 import Opportunity
from mev.wire.registry import EVENT_TYPES, EventType

EVENT: EventType = EVENT_TYPES["opportunity"]


def opportunities(count: int) -> list[Opportunity]:
    """Return `count` opportunities, the same at every call."""
    return list(islice(_complete(), count))


def json_body(events: Sequence[Message]) -> bytes:
    """Return `events` as a JSON array of plain values."""
    return orjson.dumps([plain(event) for event in events])


def protobuf_body(values: Sequence[bytes]) -> bytes:
    """Return encoded messages, each behind its length as a varint."""
    return b"".join(_varint(len(value)) + value for value in values)


def plain(message: Message) -> dict[str, Any]:
    """Return the fields that are set, 64-bit integers as numbers."""
    return {field.name: _value(value) for field, value in message.ListFields()}


def _complete() -> Iterator[Opportunity]:
    # JSON has no word for the features that a simulated agent could not observe (NaN).
    for _, opportunity, _ in Market(seed=1, rate_per_s=1000):
        if (
            isinstance(opportunity, Opportunity)
            and len(opportunity.route) == 2
            and all(map(math.isfinite, opportunity.features))
        ):
            yield opportunity


def _value(value: Any) -> Any:
    if isinstance(value, Message):
        return plain(value)
    if isinstance(value, str | int | float):
        return value
    return [_value(item) for item in value]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))
