"""``GET /api/realtime/sse``: the stream as Server-Sent Events.

It is for proxies that block upgrades and for `curl -N`. One request is one JSON subscription.
Batches are messages without a name, so that `EventSource` passes them to `onmessage`; other
messages are named after their `op`. The id of each message is the resume token after it: a browser
sends it as `Last-Event-ID` when it reconnects.
"""

import asyncio
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import orjson

from mev.auth.dependencies import PRINCIPAL
from mev.auth.model import Principal
from mev.core import asgi
from mev.core.errors import MevError
from mev.core.tasks import cancel
from mev.realtime import messages
from mev.realtime.access import StreamAccess
from mev.realtime.batch import EncodedFrame, Encoding
from mev.realtime.client import Client
from mev.realtime.errors import InvalidFieldError, UnknownFieldError
from mev.realtime.hub import Hub
from mev.realtime.message_fields import Fields
from mev.realtime.subscriber import Subscriber

PATH = "/api/realtime/sse"
SUBSCRIPTION_ID = "sse"
_PARAMETERS = frozenset({"topics", "filter", "from", "resume", "on_slow", "max_rate", "snapshot"})
_MAX_PARAMETERS = 100
_MAX_CHUNK_BYTES = 256 * 1024
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),  # nginx would hold small messages back
]
_DECIMAL = re.compile(r"[0-9]{1,20}", re.ASCII)
OPENAPI = {
    "tags": ["realtime"],
    "summary": "Stream events as Server-Sent Events",
    "description": (
        "One subscription, for clients and proxies without WebSocket. `data` is the JSON message "
        "of the WebSocket stream; `id` is the resume token, taken back as `Last-Event-ID`."
    ),
    "parameters": [
        {
            "name": name,
            "in": "query",
            "required": name == "topics",
            "description": text,
            "schema": {"type": "string"},
        }
        for name, text in {
            "topics": "Event types or patterns, separated by commas.",
            "filter": "A condition that must hold; may be repeated.",
            "from": "`live`, `earliest`, a time such as 2026-01-31T12:00:00Z, or `slot:N`.",
            "resume": "Where to go on: a resume token. `Last-Event-ID` takes its place.",
            "on_slow": "`drop_oldest`, `conflate` or `lossless`.",
            "max_rate": "Events a second, at most.",
            "snapshot": "`true`: the newest event of each key first.",
        }.items()
    ],
    "responses": {
        "200": {
            "description": "The stream.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **{
            status: {"description": text, "content": {"application/problem+json": {}}}
            for status, text in {
                "400": "A parameter is wrong.",
                "401": "No key, or an unknown one.",
                "403": "The key may not read the stream.",
                "503": "There are too many connections or replays: try again after Retry-After.",
            }.items()
        },
    },
}


class EventStreamRoute:
    """The ASGI application of one path, behind the gate."""

    def __init__(self, hub: Hub, access: StreamAccess) -> None:
        self._hub = hub
        self._access = access

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        """Answer one request, until the client disconnects or the server ends it."""
        try:
            request = self._request(scope)
            self._access.check(scope[PRINCIPAL])
            self._hub.check_room()
            if scope["method"] == "HEAD":
                await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                await send({"type": "http.response.body", "body": b""})
                return
            await self._serve(request, scope, receive, send)
        except MevError as error:
            await asgi.respond_problem(send, error)

    def _request(self, scope: asgi.Scope) -> messages.Subscribe:
        given = _parameters(scope["query_string"])
        token = asgi.header(scope, b"last-event-id")
        if token:
            given["from"] = [{"resume": token.decode("latin-1")}]
        request = messages.read(_fields(given), self._hub.types)
        assert isinstance(request, messages.Subscribe)  # noqa: S101 - by construction
        return request

    async def _serve(
        self, request: messages.Subscribe, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send
    ) -> None:
        stream = EventStream()
        client = self._hub.admit(stream, Encoding.JSON, _remote(scope))
        stream.client = client
        principal: Principal = scope[PRINCIPAL]
        try:
            self._access.register(client, principal)
            work = Subscriber(self._hub, client, self._access).subscribe(request)
            if work is not None:
                await work
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await _until_disconnected(stream, receive, send)
        finally:
            self._access.unregister(client)
            self._hub.release(client)


async def _until_disconnected(
    stream: "EventStream", receive: asgi.Receive, send: asgi.Send
) -> None:
    """Write until the stream ends, or the client closes the connection."""
    writing = asyncio.create_task(stream.write_to(send))
    disconnected = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({writing, disconnected}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel(writing, disconnected)


async def _disconnected(receive: asgi.Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """A connection on which only the server sends."""

    transport = "sse"

    def __init__(self) -> None:
        self.client: Client | None = None
        self._pending = bytearray()
        self._in_flight = 0
        self._written = 0
        self._ended = False
        self._wake = asyncio.Event()

    async def write_to(self, send: asgi.Send) -> None:
        """Send queued data as fast as the connection accepts it, until the end."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                chunk = bytes(self._pending[:_MAX_CHUNK_BYTES])
                del self._pending[: len(chunk)]
                self._in_flight = len(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                self._in_flight = 0
                self._written += len(chunk)
                if self.client is not None and not self.client.closing:
                    self.client.drain()
            if self._ended:
                await send({"type": "http.response.body", "body": b""})
                return

    # Interface for the hub.

    def send_text(self, text: bytes, resume: str = "") -> None:
        """Send a message; all except events are named after their `op`."""
        name = b""
        if not resume:
            message = orjson.loads(text)
            name, resume = message["op"].encode(), _token(message)
        lines = [b"id: %b" % resume.encode()] if resume else []
        if name and name != b"events":
            lines.append(b"event: %b" % name)
        if name == b"closing":
            lines.append(b"retry: %d" % (1000 * message["retry_after_s"]))
        self._write(b"\n".join([*lines, b"data: %b" % text, b"", b""]))

    def send_frame(self, frame: EncodedFrame, tail: bytes, *, stale: bool) -> None:
        """Raise: there are no binary messages."""
        raise NotImplementedError

    def send_datagram(self, payload: bytes) -> None:
        """Raise: there are no datagrams."""
        raise NotImplementedError

    def datagram_bytes(self) -> int:
        """Return 0: there are no datagrams."""
        return 0

    def backlog(self) -> int:
        """Return the number of bytes not yet accepted by the connection."""
        return len(self._pending) + self._in_flight

    def taken(self) -> int:
        """Return the number of bytes accepted by the connection."""
        return self._written

    def ping(self) -> None:
        """Send a comment, so that proxies keep the connection open; it has no answer."""
        self._write(b": keep-alive\n\n")
        if self.client is not None:
            self.client.heard += 1

    def close(self, code: int, reason: str) -> None:
        """Send the reason and end the stream after queued data."""
        body = orjson.dumps({"op": "closed", "code": code, "detail": reason})
        self._write(b"event: closed\ndata: %b\n\n" % body)
        self._ended = True

    def abort(self, code: int, reason: str) -> None:
        """Drop queued data, and end the stream once the connection accepts data."""
        del code, reason  # the sent data may end inside a message
        self._pending.clear()
        self._ended = True
        self._wake.set()

    def _write(self, data: bytes) -> None:
        if not self._ended:
            self._pending += data
            self._wake.set()


def _parameters(query: bytes) -> dict[str, list[Any]]:
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(query),
            errors="strict",
            max_num_fields=_MAX_PARAMETERS,
        )
    except ValueError as error:
        raise InvalidFieldError(f"the query cannot be read: {error}", field="query") from None
    given: dict[str, list[Any]] = {}
    for name, value in pairs:
        if name not in _PARAMETERS:
            allowed = ", ".join(sorted(_PARAMETERS))
            raise UnknownFieldError(
                f"no parameter {name[:80]!r}; there are {allowed}", field=name[:80]
            )
        given.setdefault(name, []).append(value)
    return given


def _fields(given: Mapping[str, list[Any]]) -> Fields:
    """Return the parameters as the fields of a `subscribe` message."""
    fields: dict[str, Any] = {"op": "subscribe", "id": SUBSCRIPTION_ID}
    fields["topics"] = [
        name.strip()
        for names in given.get("topics", ())
        for name in names.split(",")
        if name.strip()
    ]
    fields["filter"] = given.get("filter", [])
    for name in given.keys() - {"topics", "filter"}:
        if len(given[name]) > 1:
            raise InvalidFieldError(f"{name} is given more than once", field=name)
    if "resume" in given:
        fields["from"] = {"resume": given["resume"][0]}
    if "from" in given:
        fields["from"] = _start(given["from"][0])
    if "on_slow" in given:
        fields["on_slow"] = given["on_slow"][0]
    if "max_rate" in given:
        fields["max_rate"] = _number(given["max_rate"][0])
    if "snapshot" in given:
        fields["snapshot"] = {"true": True, "false": False}.get(
            given["snapshot"][0], given["snapshot"][0]
        )
    return fields


def _start(value: Any) -> object:
    if not isinstance(value, str) or value in {"live", "earliest"}:
        return value
    if value.startswith("slot:"):
        return {"slot": _number(value.removeprefix("slot:"))}
    return {"time": value}


def _number(text: str) -> object:
    """Return an integer, or invalid text unchanged: its field's parser reports it."""
    return int(text) if _DECIMAL.fullmatch(text) else text


def _token(message: Mapping[str, Any]) -> str:
    found = message.get("resume") or ""
    return found if isinstance(found, str) else str(found.get(SUBSCRIPTION_ID, ""))


def _remote(scope: asgi.Scope) -> str:
    peer = scope.get("client")
    return f"{peer[0]}:{peer[1]}" if peer else ""
