"""Requests that an API worker passes on to the control process, over a Unix socket.

Only the owner of the data folder can connect to the socket, so the control process believes what
the worker says about the client.

A request counts towards the limits from the end of its body on, because only then it is certain to
be answered soon. Where connections with unfinished bodies fill the control process, it closes the
oldest of them, and each has a time limit.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpcore

from mev.core import asgi
from mev.core.errors import MevError, UnavailableError
from mev.core.tasks import cancel
from mev.dashboard.routes import ASSETS
from mev.limits.addresses import Addresses
from mev.limits.connections import LOCAL_PEER
from mev.limits.protocol import CONTROL_PATHS, KILL_SWITCH
from mev.limits.shedding import OverloadedError
from mev.settings import Settings

_PEER = b"mev-peer"
# RFC 9110 7.6.1: of one connection. The worker has answered "Expect", and adds its own date.
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"te", b"trailer", b"upgrade", b"proxy-connection"}
)
_NOT_SENT = _HOP_BY_HOP | {b"expect", _PEER}
_NOT_ANSWERED = _HOP_BY_HOP | {b"transfer-encoding", b"date"}
_PREFERRED = (CONTROL_PATHS, "/api/auth/", ASSETS)
_SMALL_ANSWERS = (KILL_SWITCH, ASSETS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardLimits:
    """Limits of the requests that a worker has under way in the control process."""

    total: int = 512
    """All requests; those of one address may be half of them."""
    reserved: int = 64
    """More, for control paths, the dashboard and its login."""
    stops: int = 16
    """More, for the kill switch; one address may have half of them."""
    body_timeout_s: float = 30.0

    @property
    def most(self) -> int:
        """Requests that one worker has under way at most."""
        return self.total + self.reserved + self.stops


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """Requests of a worker that are under way, and those to the kill switch, by address."""

    by_address: Counter[str] = field(default_factory=Counter)
    stops: Counter[str] = field(default_factory=Counter)


def forward_limits(settings: Settings) -> ForwardLimits:
    """Return the limits of one worker."""
    return ForwardLimits(
        total=settings.http_forwarded_requests,
        reserved=settings.http_control_connections,
        body_timeout_s=settings.http_body_timeout_s,
    )


class Forward:
    """ASGI application that passes requests on to the control process at the Unix socket `path`.

    The supervisor holds the socket, so requests wait while the control process is replaced.
    """

    def __init__(self, path: Path, limits: ForwardLimits, addresses: Addresses) -> None:
        self._limits = limits
        self._addresses = addresses
        self._under_way = _UnderWay()
        # One request per connection: a control process that stops closes no connection in use.
        self._pool = httpcore.AsyncConnectionPool(
            uds=str(path), max_connections=None, max_keepalive_connections=0
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.aclose()

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        """Pass one request on, and its response back; stop when the client is gone."""
        place = _Place(self._under_way, self._limits, scope["path"], self._address(scope))
        try:
            await self._pass_on(scope, receive, send, place)
        finally:
            place.give_back()

    def _address(self, scope: asgi.Scope) -> str:
        return self._addresses.client(_peer(scope), scope["headers"])

    async def _pass_on(
        self,
        scope: asgi.Scope,
        receive: asgi.Receive,
        send: asgi.Send,
        place: "_Place",
    ) -> None:
        is_read = asyncio.Event()
        exchange = asyncio.create_task(self._exchange(scope, receive, is_read, send, place))
        gone = asyncio.create_task(_wait_until_gone(receive, is_read))
        try:
            await asyncio.wait({exchange, gone}, return_when=asyncio.FIRST_COMPLETED)
            if exchange.done():
                exchange.result()
        finally:
            await cancel(exchange, gone)

    async def _exchange(
        self,
        scope: asgi.Scope,
        receive: asgi.Receive,
        is_read: asyncio.Event,
        send: asgi.Send,
        place: "_Place",
    ) -> None:
        is_answered = False
        try:
            body = None
            if _has_body(scope):
                body = _body(receive, is_read, place.take, self._limits.body_timeout_s)
            else:
                place.take()
                is_read.set()
            async with self._pool.stream(
                scope["method"].encode(), _url(scope), headers=_headers(scope), content=body
            ) as response:
                if scope["path"] == "/" or scope["path"].startswith(_SMALL_ANSWERS):
                    # A client that does not read its answer must not keep others out.
                    content = await response.aread()
                    place.give_back()
                    await send(_start(response))
                    await send({"type": "http.response.body", "body": content})
                    return
                await send(_start(response))
                is_answered = True
                async for chunk in response.aiter_stream():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        except asgi.ClientGoneError:
            return
        except MevError as error:
            await asgi.respond_problem(send, error)
        except (httpcore.NetworkError, httpcore.ProtocolError):
            if is_answered:
                raise  # the server then closes the connection, so that the client sees the end
            ended = UnavailableError(
                "the control process ended before it answered, and is started again; the request "
                "may have been carried out: check, or repeat it with the same Idempotency-Key",
                code="control_process_ended",
                retry_after_s=2,
            )
            await asgi.respond_problem(send, ended)


class _Place:
    """The place of one request among those under way in the control process."""

    def __init__(
        self, under_way: "_UnderWay", limits: ForwardLimits, path: str, address: str
    ) -> None:
        self._under_way = under_way
        self._limits = limits
        self._path = path
        self._address = address
        self._is_taken = False

    def take(self) -> None:
        """Take the place.

        :raises OverloadedError: if there is none.
        """
        if not self._has_room():
            raise OverloadedError(
                "too many requests are under way in the control process; repeat it later",
                retry_after_s=1,
            )
        self._is_taken = True
        self._count(1)

    def give_back(self) -> None:
        """Give the place back if it is taken."""
        if self._is_taken:
            self._is_taken = False
            self._count(-1)

    def _has_room(self) -> bool:
        limits, total = self._limits, self._under_way.by_address.total()
        is_stop = self._path == KILL_SWITCH
        preferred = is_stop or self._path == "/" or self._path.startswith(_PREFERRED)
        if (
            total < limits.total + (limits.reserved if preferred else 0)
            and self._under_way.by_address[self._address] < limits.total // 2
        ):
            return True
        return (
            is_stop
            and total < limits.most
            and self._under_way.stops[self._address] < limits.stops // 2
        )

    def _count(self, number: int) -> None:
        counters = [self._under_way.by_address]
        if self._path == KILL_SWITCH:
            counters.append(self._under_way.stops)
        for counter in counters:
            counter[self._address] += number
            if not counter[self._address]:
                del counter[self._address]


def with_peer(app: asgi.App) -> asgi.App:
    """Return `app` for requests that a worker passed on: the client is the worker's."""

    async def answer(scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        peer = asgi.header(scope, _PEER)
        if peer is not None:
            scope["headers"] = [item for item in scope["headers"] if item[0] != _PEER]
            scope["client"] = (peer.decode("latin-1"), 0)
        await app(scope, receive, send)

    return answer


def _url(scope: asgi.Scope) -> httpcore.URL:
    target = scope["raw_path"]
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    return httpcore.URL(scheme=b"http", host=b"control", port=None, target=target)


def _has_body(scope: asgi.Scope) -> bool:
    return any(name in {b"content-length", b"transfer-encoding"} for name, _ in scope["headers"])


def _start(response: httpcore.Response) -> asgi.Message:
    headers = [(name.lower(), value) for name, value in response.headers]
    return {
        "type": "http.response.start",
        "status": response.status,
        "headers": [item for item in headers if item[0] not in _NOT_ANSWERED],
    }


def _headers(scope: asgi.Scope) -> list[tuple[bytes, bytes]]:
    headers = [item for item in scope["headers"] if item[0] not in _NOT_SENT]
    return [*headers, (_PEER, _peer(scope).encode("latin-1"))]


def _peer(scope: asgi.Scope) -> str:
    return scope["client"][0] if scope.get("client") else LOCAL_PEER


async def _body(
    receive: asgi.Receive, is_read: asyncio.Event, count: Callable[[], None], timeout_s: float
) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    until_s = loop.time() + timeout_s
    while True:
        try:
            message = await asyncio.wait_for(receive(), until_s - loop.time())
        except TimeoutError:
            raise asgi.BodyTooSlowError(
                f"the request body did not arrive within {timeout_s:g} s"
            ) from None
        if message["type"] == "http.disconnect":
            raise asgi.ClientGoneError
        is_last = not message.get("more_body", False)
        if is_last:
            count()
        yield message.get("body", b"")
        if is_last:
            is_read.set()
            return


async def _wait_until_gone(receive: asgi.Receive, is_read: asyncio.Event) -> None:
    await is_read.wait()
    while (await receive())["type"] != "http.disconnect":
        pass
