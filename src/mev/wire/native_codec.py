"""Encoding of request bodies by the native module.

It converts and checks the records that are valid beyond doubt. All others, and the bodies that it
cannot split, go to the :class:`~mev.wire.codec.Encoder`: records and reasons are those of the
Python code.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import orjson

from mev._native import BodyConverter, MalformedError
from mev.core.clock import now_ns
from mev.wire.codec import JSON, NDJSON, PROTOBUF, Encoded, Encoder
from mev.wire.native_tables import tables
from mev.wire.registry import EventType, KafkaRecord
from mev.wire.times import TimeBounds, time_fields

_FORMS: dict[str, Literal["json", "lines", "delimited"]] = {
    JSON: "json",
    NDJSON: "lines",
    PROTOBUF: "delimited",
}
_INT64 = (-(2**63), 2**63 - 1)
_UNDECIDED_AT_ONCE = 128
"""Records that the Python code converts before the event loop runs other work."""


class NativeEncoder:
    """Encodes bodies of one event type as Kafka records; see :class:`~mev.wire.codec.Encoder`."""

    def __init__(self, event: EventType, *, max_record_bytes: int, times: TimeBounds) -> None:
        self._python = Encoder(event, max_record_bytes=max_record_bytes, times=times)
        self._times = times
        self._converter = BodyConverter(
            tables(event.descriptor),
            key=event.key,
            required=event.required,
            times=time_fields(event),
            max_record_bytes=max_record_bytes,
            earliest_ns=_in_int64(times.earliest_ns),
        )

    def encode(self, body: bytes, content_type: str, into: Encoded) -> Iterator[None]:
        """Encode `body` into `into` in parts; the returned iterator has an item between two parts.

        :raises MalformedBodyError: when the body cannot be split into records.
        """
        latest_ns = _in_int64(self._times.latest_ns(now_ns()))
        try:
            for records, undecided, more in self._converter.pieces(
                body, _FORMS[content_type], latest_ns
            ):
                if undecided:
                    yield from self._decide(records, undecided, content_type, into)
                else:
                    into.records += records
                if more:
                    yield
        except (MalformedError, orjson.JSONDecodeError):
            into.clear()
            yield from self._python.encode(body, content_type, into)

    def _decide(
        self,
        records: list[KafkaRecord],
        undecided: Sequence[tuple[int, bytes]],
        content_type: str,
        into: Encoded,
    ) -> Iterator[None]:
        """Append `records`, and in their places the undecided ones that the Python code accepts."""
        first_index, start = len(into.records) + len(into.rejected), 0
        for number, (place, raw) in enumerate(undecided, 1):
            into.records += records[start:place]
            item = orjson.loads(raw) if content_type == JSON else raw
            self._python.encode_records([item], content_type, into, first_index=first_index + place)
            start = place + 1
            if number % _UNDECIDED_AT_ONCE == 0:
                yield
        into.records += records[start:]


def _in_int64(value: int) -> int:
    return min(max(value, _INT64[0]), _INT64[1])
