"""``POST /api/events/{type}`` as a raw ASGI route: the path with the highest load."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import orjson
from prometheus_client import Counter, Gauge

from mev.bus.publisher import Publisher
from mev.core import asgi, native
from mev.core.errors import MevError
from mev.settings import Settings
from mev.wire.codec import CONTENT_TYPES, Encoded, MalformedBodyError
from mev.wire.encoding import encoder
from mev.wire.registry import EVENT_TYPES, EventType, event_type
from mev.wire.times import TimeBounds

ACCEPTED = Counter("mev_ingest_events_total", "Events accepted.", ["type"])
REJECTED = Counter("mev_ingest_rejected_total", "Events refused.", ["type"])
NATIVE = Gauge("mev_native", "1 if the native module runs, 0 if Python code does its work.")
_SHOWN_REJECTIONS = 100
PREFIX = "/api/events/"

OPENAPI = {
    "tags": ["events"],
    "summary": "Publish events",
    "description": "Answers when the brokers have them all. "
    "Good records are published, bad ones are listed with index and reason.",
    "parameters": [{"name": "type", "in": "path", "required": True, "schema": {"type": "string"}}],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"description": "One event, or an array of events."}},
            "application/x-ndjson": {
                "schema": {"type": "string", "description": "One event a line."}
            },
            "application/x-protobuf": {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": "Messages, each behind its length as a varint.",
                }
            },
        },
    },
    "responses": {
        "202": {
            "description": "Published.",
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "properties": {
                            "accepted": {"type": "integer"},
                            "rejected": {"type": "integer"},
                            "errors": {
                                "type": "array",
                                "items": {
                                    "type": "object",
                                    "properties": {
                                        "index": {"type": "integer"},
                                        "reason": {"type": "string"},
                                    },
                                },
                            },
                        },
                    }
                }
            },
        },
        **{
            status: {"description": text, "content": {"application/problem+json": {}}}
            for status, text in {
                "400": "The body cannot be decoded or split into records; nothing was published.",
                "401": "No key, or an unknown one.",
                "403": "The key is not for writing events.",
                "404": "No such event type.",
                "408": "The body did not arrive in time.",
                "413": "The body is too large, before or after decoding.",
                "415": "Not one of the content types, "
                "or a Content-Encoding other than gzip and zstd.",
                "422": "Every record was refused.",
                "429": "Too many requests: send the same body again after Retry-After.",
                "503": "The brokers or the queue do not accept it now: "
                "send the same body again after Retry-After.",
            }.items()
        },
    },
}


class UnsupportedMediaTypeError(MevError):
    """The body's content type is not supported."""

    code = "unsupported_media_type"
    status = 415


class ReservedEventTypeError(MevError):
    """Events of this type are published by the control plane only."""

    code = "reserved_event_type"
    status = 403


class AllRejectedError(MevError):
    """No record of the body is a valid event of this type."""

    code = "all_records_rejected"
    status = 422


@dataclass(frozen=True, slots=True)
class IngestResult:
    """Result of an ingest: counts, and the first refused records with their reasons."""

    accepted: int
    rejected: int
    errors: list[dict[str, object]]


class Ingest:
    """Ingests request bodies; `max_record_bytes` limits an event, `times` its points in time."""

    def __init__(self, publisher: Publisher, *, max_record_bytes: int, times: TimeBounds) -> None:
        self._publisher = publisher
        NATIVE.set(native.is_used())
        for name in EVENT_TYPES:
            ACCEPTED.labels(name)
            REJECTED.labels(name)
        self._encoders = {
            name: encoder(event, max_record_bytes=max_record_bytes, times=times)
            for name, event in EVENT_TYPES.items()
        }

    async def take(self, type_name: str, body: bytes, content_type: str) -> IngestResult:
        """Publish the events in `body`; return once the brokers have acknowledged all of them.

        :raises UnknownEventTypeError, ReservedEventTypeError, UnsupportedMediaTypeError: nothing
            was published.
        :raises MalformedBodyError, AllRejectedError: nothing was published.
        :raises QueueFullError, PublishError: the same body may be sent again; repeats of events
            already published are recognised.
        """
        event = event_type(type_name)
        if event.ours:
            raise ReservedEventTypeError(
                f"{type_name}: only the control plane itself publishes such events"
            )
        encoded = await self._encode(event, body, _media_type(content_type))
        answer = _answer(encoded)
        REJECTED.labels(event.name).inc(answer.rejected)
        if not encoded.records:
            raise _nothing_accepted(answer)
        await self._publisher.publish(event.topic, encoded.records)
        ACCEPTED.labels(event.name).inc(answer.accepted)
        return answer

    async def _encode(self, event: EventType, body: bytes, media_type: str) -> Encoded:
        encoded = Encoded()
        for _ in self._encoders[event.name].encode(body, media_type, encoded):
            await asyncio.sleep(0)
        return encoded


def _media_type(content_type: str) -> str:
    try:
        return CONTENT_TYPES[content_type.partition(";")[0].strip().lower()]
    except KeyError:
        raise UnsupportedMediaTypeError(
            f"Content-Type {content_type!r} is not supported; "
            f"send one of {', '.join(CONTENT_TYPES)}",
            supported=list(CONTENT_TYPES),
        ) from None


def _answer(encoded: Encoded) -> IngestResult:
    errors: list[dict[str, object]] = [
        {"index": r.index, "reason": r.reason} for r in encoded.rejected[:_SHOWN_REJECTIONS]
    ]
    return IngestResult(len(encoded.records), len(encoded.rejected), errors)


def _nothing_accepted(answer: IngestResult) -> MevError:
    if not answer.rejected:
        return MalformedBodyError("the body holds no event")
    first = answer.errors[0]
    return AllRejectedError(
        f"record {first['index']}: {first['reason']}",
        accepted=0,
        rejected=answer.rejected,
        errors=answer.errors,
    )


@dataclass(frozen=True, slots=True)
class IngestRoute:
    """ASGI application that ingests event bodies, behind the gate.

    `max_body_bytes` and `body_timeout_s` limit the body. `check_queue` raises when the queue to the
    brokers is nearly full; it runs before the body is read.
    """

    ingest: Ingest
    check_queue: Callable[[], None]
    max_body_bytes: int
    body_timeout_s: float
    max_ratio: float = asgi.DEFAULT_MAX_RATIO

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        """Answer one request."""
        try:
            asgi.check_length(scope, self.max_body_bytes)
            self.check_queue()
            body = await asgi.read_body(
                scope,
                receive,
                limit_bytes=self.max_body_bytes,
                timeout_s=self.body_timeout_s,
                max_ratio=self.max_ratio,
            )
            content_type = (asgi.header(scope, b"content-type") or b"").decode("latin-1")
            answer = await self.ingest.take(scope["path"][len(PREFIX) :], body, content_type)
        except MevError as error:
            await asgi.respond_problem(send, error)
        except asgi.ClientGoneError:
            return
        else:
            await asgi.respond(send, 202, orjson.dumps(answer))


def ingest_route(
    settings: Settings, publisher: Publisher, check_queue: Callable[[], None]
) -> IngestRoute:
    """Return the route that publishes events; `check_queue` raises while the queue is too full."""
    times = TimeBounds(
        earliest_ns=settings.ingest_time_earliest_ns, ahead_s=settings.ingest_time_ahead_s
    )
    return IngestRoute(
        Ingest(publisher, max_record_bytes=settings.ingest_max_record_bytes, times=times),
        check_queue,
        settings.ingest_max_body_bytes,
        settings.http_body_timeout_s,
        settings.http_max_compression_ratio,
    )
