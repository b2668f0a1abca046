"""ASGI helpers for raw routes: messages, bounded bodies, prepared responses, and the sender."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import orjson

from mev.core.coding import (
    ACCEPTED_CODINGS,
    UnsupportedCodingError,
    check_values,
    coding_of,
    decode,
    too_large,
)
from mev.core.errors import MevError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
PROBLEM_JSON = "application/problem+json"
DEFAULT_MAX_RATIO = 100.0
_LARGE_BODY_BYTES = 4 << 10
_STOP_S = 0.2
"""How long large bodies wait for stops at most: one that does not end blocks nothing."""
_ENCODED_BODY_HEADERS = frozenset({b"content-encoding", b"content-length"})
ANONYMOUS = "anonymous"


class BodyTooSlowError(MevError):
    """The request body did not arrive in time."""

    code = "body_too_slow"
    status = 408


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete."""


class LargeBodies:
    """Admits one large body at a time, as parsing blocks the event loop, and none during a stop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._stops = 0
        self._until_s = 0.0
        self._no_stop = asyncio.Event()

    async def turn(self) -> None:
        """Wait until other requests were served, and for stops in progress, up to 0.2 s."""
        async with self._lock:
            await asyncio.sleep(0)
            if self._stops and asyncio.get_running_loop().time() < self._until_s:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(self._until_s):
                        await self._no_stop.wait()

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """Keep large bodies waiting while a stop is handled."""
        if not self._stops:
            self._until_s = asyncio.get_running_loop().time() + _STOP_S
            self._no_stop.clear()
        self._stops += 1
        try:
            yield
        finally:
            self._stops -= 1
            if not self._stops:
                self._no_stop.set()


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return the first header called `name` (lower case), or None."""
    return next((value for key, value in scope["headers"] if key == name), None)


def check_length(scope: Scope, limit_bytes: int) -> None:
    """Refuse a request whose Content-Length is above `limit_bytes`.

    :raises BodyTooLargeError: if it is.
    """
    length = header(scope, b"content-length")
    if length is not None and int(length) > limit_bytes:
        raise too_large(limit_bytes)


async def read_body(
    scope: Scope,
    receive: Receive,
    *,
    limit_bytes: int,
    timeout_s: float | None = None,
    max_ratio: float = DEFAULT_MAX_RATIO,
) -> bytes:
    """Return the decoded request body.

    :raises UnsupportedCodingError: if its content coding is not supported; nothing is read then.
    :raises UndecodableBodyError: if it does not match its Content-Encoding.
    :raises BodyTooLargeError: as soon as it is known to be longer than `limit_bytes`, encoded or
        decoded, or to decode to more than `max_ratio` times its size.
    :raises BodyTooSlowError: if it is not complete within `timeout_s`.
    :raises ClientGoneError: if the client disconnects first.
    """
    check_length(scope, limit_bytes)
    coding = coding_of(scope["headers"])
    try:
        async with asyncio.timeout(timeout_s):
            body = await _gather(receive, limit_bytes)
    except TimeoutError:
        raise BodyTooSlowError(f"the body did not arrive within {timeout_s:g} s") from None
    if coding is None:
        return body
    return await decode(body, coding, limit_bytes=limit_bytes, max_ratio=max_ratio)


async def _gather(receive: Receive, limit_bytes: int) -> bytes:
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit_bytes:
            raise too_large(limit_bytes)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


async def buffered(
    scope: Scope,
    receive: Receive,
    *,
    limit_bytes: int,
    limit_values: int,
    large: "LargeBodies",
    timeout_s: float | None = None,
    max_ratio: float = DEFAULT_MAX_RATIO,
) -> Receive:
    """Read the body now, as :func:`read_body` does, and return a receiver that gives it at once.

    Large bodies wait for their turn of `large`.

    :raises BodyTooLargeError: also when it may hold more than `limit_values` JSON values.
    """
    names = {name for name, _ in scope["headers"]}
    if not names & {b"content-length", b"transfer-encoding"}:
        return receive
    body = await read_body(
        scope, receive, limit_bytes=limit_bytes, timeout_s=timeout_s, max_ratio=max_ratio
    )
    check_values(body, limit_values)
    if len(body) > _LARGE_BODY_BYTES:
        await large.turn()
    if b"content-encoding" in names:  # the endpoint gets the decoded body
        scope["headers"] = [
            (name, value) for name, value in scope["headers"] if name not in _ENCODED_BODY_HEADERS
        ]

    waiting: list[bytes] = [body]

    async def replay() -> Message:
        if not waiting:
            return await receive()
        return {"type": "http.request", "body": waiting.pop(), "more_body": False}

    return replay


async def respond(
    send: Send,
    status: int,
    body: bytes,
    *headers: tuple[bytes, bytes],
    content_type: bytes = b"application/json",
) -> None:
    """Send a complete response."""
    fixed = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    if status == 204:
        fixed = []  # RFC 9110 8.6: a 204 response has no Content-Length
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body})


async def respond_problem(send: Send, error: MevError) -> None:
    """Send `error` as RFC 9457 problem JSON."""
    await respond(
        send,
        error.status,
        problem_body(error),
        *problem_headers(error),
        content_type=PROBLEM_JSON.encode(),
    )


def problem_body(error: MevError) -> bytes:
    """Return `error` as RFC 9457 problem JSON."""
    return orjson.dumps(error.problem())


def problem_headers(error: MevError) -> list[tuple[bytes, bytes]]:
    """Return the response headers for `error`."""
    headers = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if error.status == 408:
        headers.append((b"connection", b"close"))
    if isinstance(error, UnsupportedCodingError):
        headers.append((b"accept-encoding", ACCEPTED_CODINGS.encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", str(error.fields.get("challenge", "Bearer")).encode()))
    return headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Principal of a request, its session or API key, and its address.

    `actor` is `user:NAME`, `key:ID`, `master` or `anonymous`.
    """

    actor: str
    session: str = ""
    remote: str = ""


SENDER: ContextVar[Sender | None] = ContextVar("sender", default=None)
