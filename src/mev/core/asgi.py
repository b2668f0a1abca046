"""The little of ASGI that the fast lane needs: typed messages, bodies with a limit, ready-made answers."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from mev.core.errors import MevError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
PROBLEM_JSON = "application/problem+json"


class BodyTooLargeError(MevError):
    """The request body is larger than allowed."""

    code = "body_too_large"
    status = 413


class BodyTooSlowError(MevError):
    """The request body did not come in time."""

    code = "body_too_slow"
    status = 408


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete."""


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return the first header called `name`, in lower case, if there is one."""
    return next((value for key, value in scope["headers"] if key == name), None)


def check_length(scope: Scope, limit_bytes: int) -> None:
    """Refuse a request that says its body is longer than `limit_bytes`.

    :raises BodyTooLargeError: then.
    """
    length = header(scope, b"content-length")
    if length is not None and int(length) > limit_bytes:
        raise _too_large(limit_bytes)


async def read_body(scope: Scope, receive: Receive, *, limit_bytes: int, timeout_s: float | None = None) -> bytes:
    """Return the request body.

    :raises BodyTooLargeError: as soon as it is known to be longer than `limit_bytes`.
    :raises BodyTooSlowError: when it has not all come within `timeout_s`.
    :raises ClientGoneError: when the client goes away first.
    """
    check_length(scope, limit_bytes)
    try:
        async with asyncio.timeout(timeout_s):
            return await _gather(receive, limit_bytes)
    except TimeoutError:
        raise BodyTooSlowError(f"the body did not come within {timeout_s:g} s") from None


async def _gather(receive: Receive, limit_bytes: int) -> bytes:
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


async def buffered(scope: Scope, receive: Receive, *, limit_bytes: int, timeout_s: float | None = None) -> Receive:
    """Read the body now, as :func:`read_body` does, and return a receiver that gives it at once."""
    names = {name for name, _ in scope["headers"]}
    if not names & {b"content-length", b"transfer-encoding"}:
        return receive
    body: bytes | None = await read_body(scope, receive, limit_bytes=limit_bytes, timeout_s=timeout_s)

    async def replay() -> Message:
        nonlocal body
        if body is None:
            return await receive()
        whole, body = body, None
        return {"type": "http.request", "body": whole, "more_body": False}

    return replay


async def respond(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes], content_type: bytes = b"application/json") -> None:
    """Send a whole answer."""
    fixed = ((b"content-type", content_type), (b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body})


async def respond_problem(send: Send, error: MevError) -> None:
    """Send `error` as RFC 9457 problem JSON."""
    await respond(send, error.status, problem_body(error), *problem_headers(error), content_type=PROBLEM_JSON.encode())


def problem_body(error: MevError) -> bytes:
    """Return `error` as RFC 9457 problem JSON."""
    return orjson.dumps(error.problem())


def problem_headers(error: MevError) -> list[tuple[bytes, bytes]]:
    """Return the headers that belong to `error`."""
    headers = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if error.status == 408:
        headers.append((b"connection", b"close"))
    if error.status == 401:
        headers.append((b"www-authenticate", str(error.fields.get("challenge", "Bearer")).encode()))
    return headers


def _too_large(limit_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body has more than {limit_bytes} bytes; send it in parts", limit_bytes=limit_bytes)
