"""Bulk ingest: a body of events becomes Kafka messages, bad records are told apart from good ones."""

import asyncio
from dataclasses import dataclass

from prometheus_client import Counter

from mev.bus.publisher import Publisher
from mev.core.errors import MevError
from mev.wire.codec import CONTENT_TYPES, JSON, NDJSON, PROTOBUF, Encoded, Encoder, MalformedBodyError, split
from mev.wire.registry import EVENT_TYPES, EventType, event_type

ACCEPTED = Counter("mev_ingest_events_total", "Events accepted.", ["type"])
REJECTED = Counter("mev_ingest_rejected_total", "Events refused.", ["type"])
# Records encoded before the event loop gets its turn: about half a millisecond.
_SLICES = {JSON: 128, NDJSON: 128, PROTOBUF: 512}
_SHOWN_REJECTIONS = 100


class UnsupportedMediaTypeError(MevError):
    """The body's content type is not one of the three."""

    code = "unsupported_media_type"
    status = 415


class ReservedEventTypeError(MevError):
    """Events of this type come from the control plane alone."""

    code = "reserved_event_type"
    status = 403


class AllRejectedError(MevError):
    """No record of the body is an event of this type."""

    code = "all_records_rejected"
    status = 422


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a body: counts, and the first refused records with their reasons."""

    accepted: int
    rejected: int
    errors: list[dict[str, object]]


class Ingest:
    """Takes bodies for one publisher; `max_record_bytes` bounds an event, `ack` of a call its wait for the brokers."""

    def __init__(self, publisher: Publisher, *, max_record_bytes: int) -> None:
        self._publisher = publisher
        self._encoders = {name: Encoder(event, max_record_bytes=max_record_bytes) for name, event in EVENT_TYPES.items()}

    async def take(self, type_name: str, body: bytes, content_type: str) -> Answer:
        """Publish the events in `body` and return when the brokers have them all.

        :raises UnknownEventTypeError, ReservedEventTypeError, UnsupportedMediaTypeError: nothing was published.
        :raises MalformedBodyError, AllRejectedError: nothing either.
        :raises QueueFullError, PublishError: the same body may be sent again; what was published already is recognised.
        """
        event = event_type(type_name)
        if event.ours:
            raise ReservedEventTypeError(f"{type_name}: only the control plane itself publishes such events")
        encoded = await self._encode(event, body, _media_type(content_type))
        answer = _answer(encoded)
        REJECTED.labels(event.name).inc(answer.rejected)
        if not encoded.records:
            raise _nothing_accepted(answer)
        await self._publisher.publish(event.topic, encoded.records)
        ACCEPTED.labels(event.name).inc(answer.accepted)
        return answer

    async def _encode(self, event: EventType, body: bytes, media_type: str) -> Encoded:
        raw, encoded, encoder = split(body, media_type), Encoded(), self._encoders[event.name]
        size = _SLICES[media_type]
        for start in range(0, len(raw), size):
            if start:
                await asyncio.sleep(0)
            encoder.encode(raw[start : start + size], media_type, encoded, first_index=start)
        return encoded


def _media_type(content_type: str) -> str:
    try:
        return CONTENT_TYPES[content_type.partition(";")[0].strip().lower()]
    except KeyError:
        raise UnsupportedMediaTypeError(
            f"Content-Type {content_type!r} is not supported; send one of {', '.join(CONTENT_TYPES)}", supported=list(CONTENT_TYPES)
        ) from None


def _answer(encoded: Encoded) -> Answer:
    errors: list[dict[str, object]] = [{"index": r.index, "reason": r.reason} for r in encoded.rejected[:_SHOWN_REJECTIONS]]
    return Answer(len(encoded.records), len(encoded.rejected), errors)


def _nothing_accepted(answer: Answer) -> MevError:
    if not answer.rejected:
        return MalformedBodyError("the body holds no event")
    first = answer.errors[0]
    return AllRejectedError(f"record {first['index']}: {first['reason']}", accepted=0, rejected=answer.rejected, errors=answer.errors)
