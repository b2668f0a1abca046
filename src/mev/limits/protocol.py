"""HTTP connections inside uvicorn, with limits on the size and time of request heads.

uvicorn has no such limits. Only this module knows its protocol class; bodies are limited where they
are read.
"""

import asyncio
import re
import sys
from collections.abc import Iterable
from typing import Any, cast

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mev.core.errors import MevError, UnavailableError
from mev.limits.connections import LOCAL_PEER, REFUSED, ConnectionUse, HttpConnections

Headers = Iterable[tuple[bytes, bytes]]
CONTROL_PATHS = "/api/control/"
KILL_SWITCH = f"{CONTROL_PATHS}kill-switch"
ANY_PATH = "/*"
"""Path of ``OPTIONS *``, which addresses the server as a whole (RFC 9110 9.3.7)."""
_VERSIONS = frozenset({"1.0", "1.1"})
# One whose method is a token (RFC 9110 5.6.2).
_REQUEST_LINE = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+ \S+ HTTP/1\.[01]\r\n")
# A name or IPv4 address, or an IPv6 address in brackets; then a port (RFC 3986 3.2, without
# sub-delims).
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%-]+)(?::[0-9]{0,5})?")


class TooManyHttpConnectionsError(UnavailableError):
    """The connection limit is reached."""

    code = "too_many_connections"


class TooManyPipelinedError(MevError):
    """The client sends requests on one connection without waiting for answers."""

    code = "too_many_pipelined_requests"
    status = 429


class HeadTooLargeError(MevError):
    """The request line and headers are larger than allowed."""

    code = "headers_too_large"
    status = 431


class HeadTooSlowError(MevError):
    """The request line and headers did not arrive in time."""

    code = "headers_too_slow"
    status = 408


class BadRequestError(MevError):
    """The data is not an HTTP request."""

    code = "bad_request"
    status = 400


class BadHostError(MevError):
    """The request does not have exactly one valid Host header (RFC 9112 3.2)."""

    code = "bad_host"
    status = 400


class UnsupportedTransferError(MevError):
    """The body has a transfer coding other than chunked (RFC 9112 6.1)."""

    code = "unsupported_transfer_encoding"
    status = 501


class UnsupportedVersionError(MevError):
    """The HTTP version of the request is not supported."""

    code = "unsupported_http_version"
    status = 505


class UnknownMethodError(MevError):
    """No path takes this method (RFC 9110 9.1)."""

    code = "unknown_method"
    status = 501


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP connection, with limits."""

    def __init__(self, connections: HttpConnections, **options: Any) -> None:
        super().__init__(**options)
        self._registry = connections
        self._limits = connections.limits
        self._place: ConnectionUse | None = None
        self._objection: MevError | None = None
        self._head_bytes = 0
        self._head_since: float | None = None  # None unless a head is expected
        self._stalled_since: float | None = None
        self._stalled_at = 0
        self._data = b""
        self._running: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection, or refuse it at once."""
        super().connection_made(cast("asyncio.Transport", transport))
        if self.client is None:
            self.client = (LOCAL_PEER, 0)
        self._head_since = self.loop.time()
        self._place = self._registry.enter(self, self.client[0])
        if self._place is None:
            self._refuse(_too_many())

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection from the registry; its request is not answered any more."""
        self._registry.leave(self)
        if self._running is not None:  # not the last cycle if requests wait behind it
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def evict(self) -> None:
        """Close the connection to make room for another one."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Parse bytes; count those of an unfinished head."""
        if self.transport.is_closing():
            return
        in_head = self._head_since is not None
        self._data = data
        super().data_received(data)
        if in_head and self._head_since is not None:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.head_bytes:
                self._refuse(self._too_large())
        elif not in_head and self._is_between_requests():
            self._head_since = self.loop.time()  # bytes between requests that start none

    def on_message_begin(self) -> None:
        """Start counting the bytes of a head."""
        super().on_message_begin()
        self._head_since = self.loop.time()
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, unless the head is already too large."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes <= self._limits.head_bytes:
            super().on_header(name, value.strip(b" \t"))  # the parser leaves trailing whitespace

    def on_url(self, url: bytes) -> None:
        """Take a part of the URL."""
        self._head_bytes += len(url)
        super().on_url(url)

    def on_headers_complete(self) -> None:
        """Start the request, or refuse its head."""
        self._head_since = None
        self._objection = self._objection_to_head()
        if self._objection is not None:
            raise ValueError("refused")  # the parser then calls `send_400_response`
        self._head_bytes = 0
        if self._ignores_upgrade():
            return
        if self.url == b"*":
            self.url = ANY_PATH.encode()
        super().on_headers_complete()
        is_last = self._registry.are_last or self._place is not ConnectionUse.ANY
        if is_last and self.cycle is not None:
            self.cycle.keep_alive = False  # a reserved place is for one request

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_message_complete(self) -> None:
        """Note that the whole request is there, unless it has been answered before."""
        if self._ignores_upgrade():
            return
        super().on_message_complete()
        cycle = self._last_cycle()
        if cycle is not None and not cycle.response_complete:
            self._registry.begin(self)

    def on_response_complete(self) -> None:
        """Mark the connection as idle until its next request."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._registry.rest(self)

    def _should_upgrade(self) -> bool:
        # RFC 9110 7.8 and RFC 6455 4.1: an upgrade is one of HTTP/1.1, a handshake is a GET.
        is_handshake = (
            self.parser.get_method() == b"GET" and self.parser.get_http_version() == "1.1"
        )
        return is_handshake and super()._should_upgrade()

    def _ignores_upgrade(self) -> bool:
        """Return whether to ignore the request's `Upgrade` header.

        It names an unsupported protocol, such as h2c; the request is answered over HTTP/1.1.
        """
        return bool(
            self.parser.should_upgrade()
            and self.parser.get_method() != b"CONNECT"
            and not self._should_upgrade()
        )

    def _unsupported_upgrade_warning(self) -> None:
        """Parse the request again without its `Upgrade` header.

        Because of that header the parser did not read the body.
        """
        error = sys.exception()
        if not (isinstance(error, httptools.HttpParserUpgrade) and self._ignores_upgrade()):
            return
        version, lines = (
            self.parser.get_http_version(),
            [name + b": " + value for name, value in self.headers if name != b"upgrade"],
        )
        head = b"%b %b HTTP/%b\r\n%b\r\n\r\n" % (
            self.parser.get_method(),
            self.url,
            version.encode(),
            b"\r\n".join(lines),
        )
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self.data_received(head + self._data[error.args[0] :])

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over to the WebSocket service, which has its own limits."""
        self._registry.leave(self)
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that cannot be parsed."""
        if self._objection is not None:
            self._refuse(self._objection)
        elif self._head_bytes > self._limits.head_bytes:
            self._refuse(self._too_large())
        else:
            REFUSED.labels("malformed").inc()
            is_method = isinstance(
                sys.exception(), httptools.HttpParserInvalidMethodError
            ) and _REQUEST_LINE.match(self._data)
            self._refuse(
                UnknownMethodError("no path takes this method; OPTIONS names those that one takes")
                if is_method
                else BadRequestError(msg)
            )

    def look(self, now: float) -> None:
        """Close the connection if its peer is too slow at time `now`."""
        if self.transport.is_closing():
            if self._stands_still(now):
                self.transport.abort()
        elif self._head_since is not None and now - self._head_since > self._limits.head_timeout_s:
            REFUSED.labels("slow_head").inc()
            self._refuse(
                HeadTooSlowError(
                    f"the headers did not arrive within {self._limits.head_timeout_s:g} s"
                )
            )
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

    def _objection_to_head(self) -> MevError | None:
        if self._head_bytes > self._limits.head_bytes:
            return self._too_large()
        if (
            objection := _objection_to_host(self.headers, self.parser.get_http_version())
        ) is not None:
            REFUSED.labels("host").inc()
            return objection
        if (
            objection := _objection_to_framing(self.headers, self.parser.get_http_version())
        ) is not None:
            REFUSED.labels("malformed").inc()
            return objection
        if len(self.pipeline) >= self._limits.pipelined:
            REFUSED.labels("pipelined").inc()
            return TooManyPipelinedError(
                f"more than {self._limits.pipelined} requests wait for the answer to the one before"
            )
        is_control = self.url.startswith(CONTROL_PATHS.encode())
        if (self._place is ConnectionUse.CONTROL and not is_control) or (
            self._place is ConnectionUse.STOP and self.url != KILL_SWITCH.encode()
        ):
            REFUSED.labels("connections").inc()
            return _too_many()
        return None

    def _too_large(self) -> MevError:
        REFUSED.labels("large_head").inc()
        return HeadTooLargeError(
            f"the request line and headers have more than {self._limits.head_bytes} bytes"
        )

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


def _objection_to_host(headers: Headers, version: str) -> MevError | None:
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1 and (hosts or version != "1.0"):
        return BadHostError(f"the request has {len(hosts)} Host headers; send exactly one")
    if hosts and not _HOST.fullmatch(hosts[0]):
        return BadHostError("the Host header is not a host name or address with an optional port")
    return None


def _objection_to_framing(headers: Headers, version: str) -> MevError | None:
    if version not in _VERSIONS:
        return UnsupportedVersionError(f"HTTP/{version} in a request line; send HTTP/1.1")
    codings = b",".join(value for name, value in headers if name == b"transfer-encoding")
    if codings and codings.lower() != b"chunked":
        return UnsupportedTransferError(
            "Transfer-Encoding is not chunked alone; "
            "name what compresses a body in Content-Encoding"
        )
    return None


def _too_many() -> MevError:
    return TooManyHttpConnectionsError(
        "the connection limit is reached; close connections, or try again later", retry_after_s=5
    )


def http_class(connections: HttpConnections) -> type[HttpProtocol]:
    """Return the protocol class for ``uvicorn.Config(app, http=http_class(...))``."""

    class BoundHttp(HttpProtocol):
        """A connection registered in `connections`."""

        def __init__(self, **options: Any) -> None:
            super().__init__(connections, **options)

    return BoundHttp
