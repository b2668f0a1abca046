"""``POST /api/events/{type}`` as bare ASGI, in front of the framework: it is the path that carries the load."""

from collections.abc import Callable
from dataclasses import dataclass

import orjson

from mev.core import asgi
from mev.core.errors import MevError
from mev.ingest.service import Ingest

PREFIX = "/api/events/"

OPENAPI = {
    "tags": ["events"],
    "summary": "Publish events",
    "description": "Answers when the brokers have them all. Good records are published, bad ones are listed with index and reason.",
    "parameters": [{"name": "type", "in": "path", "required": True, "schema": {"type": "string"}}],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"description": "One event, or an array of events."}},
            "application/x-ndjson": {"schema": {"type": "string", "description": "One event a line."}},
            "application/x-protobuf": {
                "schema": {"type": "string", "format": "binary", "description": "Messages, each behind its length as a varint."}
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
                                "items": {"type": "object", "properties": {"index": {"type": "integer"}, "reason": {"type": "string"}}},
                            },
                        },
                    }
                }
            },
        },
        **{
            status: {"description": text, "content": {"application/problem+json": {}}}
            for status, text in {
                "400": "The body cannot be split into records; nothing was published.",
                "401": "No key, or an unknown one.",
                "403": "The key is not for writing events.",
                "404": "No such event type.",
                "408": "The body did not come in time.",
                "413": "The body is too large.",
                "415": "Not one of the content types.",
                "422": "Every record was refused.",
                "429": "Too many requests: send the same body again after Retry-After.",
                "503": "The brokers or the queue do not take it now: send the same body again after Retry-After.",
            }.items()
        },
    },
}


@dataclass(frozen=True, slots=True)
class IngestLane:
    """An ASGI application for one path, behind the gate; `max_body_bytes` and `body_timeout_s` bound the body.

    `check_queue` refuses when the brokers take less than is sent: before a body is read, that is cheap.
    """

    ingest: Ingest
    check_queue: Callable[[], None]
    max_body_bytes: int
    body_timeout_s: float

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        """Answer one request."""
        try:
            asgi.check_length(scope, self.max_body_bytes)
            self.check_queue()
            body = await asgi.read_body(scope, receive, limit_bytes=self.max_body_bytes, timeout_s=self.body_timeout_s)
            content_type = (asgi.header(scope, b"content-type") or b"").decode("latin-1")
            answer = await self.ingest.take(scope["path"][len(PREFIX) :], body, content_type)
        except MevError as error:
            await asgi.respond_problem(send, error)
        except asgi.ClientGoneError:
            return
        else:
            await asgi.respond(send, 202, orjson.dumps(answer))
