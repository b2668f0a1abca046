"""HTTP connections inside uvicorn: how many there may be, how large and how slow a request head, how long one may stand still.

uvicorn has none of these bounds. This module is the only one that knows its protocol class; bodies are bounded where they are read.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import orjson
from prometheus_client import Counter as Metric
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mev.core.errors import MevError, UnavailableError
from mev.limits.addresses import Addresses

REFUSED = Metric("mev_http_connections_refused_total", "Connections closed by a limit.", ["reason"])
_SWEEP_S = 0.5


class TooManyConnectionsError(UnavailableError):
    """There are as many connections as there may be."""

    code = "too_many_connections"


class HeadTooLargeError(MevError):
    """The request line and headers are larger than allowed."""

    code = "headers_too_large"
    status = 431


class HeadTooSlowError(MevError):
    """The request line and headers did not come in time."""

    code = "headers_too_slow"
    status = 408


class BadRequestError(MevError):
    """This is no HTTP request."""

    code = "bad_request"
    status = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Bounds of HTTP connections."""

    total: int = 10_000
    per_address: int = 1_000
    head_bytes: int = 32 * 1024
    head_timeout_s: float = 10
    stall_timeout_s: float = 60
    """For how long a peer may take nothing of an answer, or go on sending a body that was refused."""


class Connections:
    """Every open HTTP connection of a server; looks at all of them twice a second."""

    def __init__(self, limits: ConnectionLimits, addresses: Addresses) -> None:
        self.limits = limits
        self._addresses = addresses
        self._open: set[HttpProtocol] = set()
        self._by_address: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, connection: "HttpProtocol", peer: str) -> bool:
        """Count a connection; False when there is no room for it."""
        proxy = self._addresses.is_proxy(peer)
        if len(self._open) >= self.limits.total or (not proxy and self._by_address[peer] >= self.limits.per_address):
            REFUSED.labels("connections").inc()
            return False
        self._open.add(connection)
        self._by_address[peer] += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)
        return True

    def leave(self, connection: "HttpProtocol", peer: str) -> None:
        """Forget a connection."""
        if connection not in self._open:
            return
        self._open.remove(connection)
        self._by_address[peer] -= 1
        if not self._by_address[peer]:
            del self._by_address[peer]
        if not self._open and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_SWEEP_S, self._sweep)
        for connection in list(self._open):
            connection.look(loop.time())


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP connection, with bounds."""

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._registry = connections
        self._limits = connections.limits
        self._peer = ""
        self._head_bytes = 0
        self._head_since: float | None = None  # None while no head is awaited
        self._stalled_since: float | None = None
        self._stalled_at = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, or refuse it at once."""
        super().connection_made(cast("asyncio.Transport", transport))
        self._peer = self.client[0] if self.client else ""
        self._head_since = self.loop.time()
        if not self._registry.enter(self, self._peer):
            self._refuse(TooManyConnectionsError("there are as many connections as there may be; try again later", retry_after_s=5))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._registry.leave(self, self._peer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; those of an unfinished head are counted."""
        if self.transport.is_closing():
            return
        in_head = self._head_since is not None
        super().data_received(data)
        if in_head and self._head_since is not None:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.head_bytes:
                self._refuse_head()
        elif not in_head and self._is_between_requests():
            self._head_since = self.loop.time()  # something came between requests that begins none

    def on_message_begin(self) -> None:
        """Begin to count a head."""
        super().on_message_begin()
        self._head_since = self.loop.time()
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, unless there are too many bytes of them already."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes <= self._limits.head_bytes:
            super().on_header(name, value)

    def on_url(self, url: bytes) -> None:
        """Take a part of the path."""
        self._head_bytes += len(url)
        super().on_url(url)

    def on_headers_complete(self) -> None:
        """Start the request, unless its head is too large."""
        self._head_since = None
        if self._head_bytes > self._limits.head_bytes:
            raise ValueError("the head is too large")  # the parser turns it into a refusal, see below
        self._head_bytes = 0
        super().on_headers_complete()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over: from now on the WebSocket service bounds it."""
        self._registry.leave(self, self._peer)
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed."""
        if self._head_bytes > self._limits.head_bytes:
            self._refuse_head()
        else:
            self._refuse(BadRequestError(msg))

    def look(self, now: float) -> None:
        """Close the connection if its peer has been too slow by `now`."""
        if self.transport.is_closing():
            if self._stands_still(now):
                self.transport.abort()
        elif self._head_since is not None and now - self._head_since > self._limits.head_timeout_s:
            REFUSED.labels("slow_head").inc()
            self._refuse(HeadTooSlowError(f"the headers did not come within {self._limits.head_timeout_s:g} s"))
        elif self._stands_still(now):
            REFUSED.labels("stalled").inc()
            self.transport.abort()

    def _last_cycle(self) -> RequestResponseCycle | None:
        return self.cycle

    def _is_between_requests(self) -> bool:
        cycle = self._last_cycle()
        return cycle is None or (cycle.response_complete and not cycle.more_body)

    def _stands_still(self, now: float) -> bool:
        waiting = self.transport.get_write_buffer_size()
        cycle = self._last_cycle()
        refused_body = cycle is not None and cycle.response_complete and cycle.more_body
        if not (waiting or refused_body) or (waiting != self._stalled_at and not refused_body):
            self._stalled_since, self._stalled_at = None, waiting
            return False
        if self._stalled_since is None:
            self._stalled_since = now
        return now - self._stalled_since > self._limits.stall_timeout_s

    def _refuse_head(self) -> None:
        REFUSED.labels("large_head").inc()
        self._refuse(HeadTooLargeError(f"the request line and headers have more than {self._limits.head_bytes} bytes"))

    def _refuse(self, error: MevError) -> None:
        if self.transport.is_closing():
            return
        body = orjson.dumps(error.problem())
        lines = [
            f"HTTP/1.1 {error.status} {error.code}",
            "content-type: application/problem+json",
            f"content-length: {len(body)}",
            "connection: close",
            *([f"retry-after: {error.retry_after_s}"] if error.retry_after_s else []),
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()


def http_class(connections: Connections) -> type[HttpProtocol]:
    """Return the class to give uvicorn: ``uvicorn.Config(app, http=http_class(...))``."""

    class BoundHttp(HttpProtocol):
        """A connection counted by `connections`."""

        def __init__(self, **options: Any) -> None:
            super().__init__(connections, **options)

    return BoundHttp
