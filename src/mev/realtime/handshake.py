"""The HTTP request that opens a WebSocket: checked, and answered with 101 or a problem."""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from http import HTTPStatus

import orjson

from mev.auth.browser import Origins
from mev.auth.credentials import Credential, Source, find
from mev.core.errors import MevError
from mev.realtime.errors import (
    BadHandshakeError,
    ForbiddenOriginError,
    UnknownPathError,
    UpgradeRequiredError,
)
from mev.realtime.tally import Encoding

SUBPROTOCOL = "mev.v1.protobuf"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@dataclass(frozen=True, slots=True)
class Request:
    """A request head: path without query, headers by lower-case name (repeated ones joined by a comma)."""

    method: str
    path: str
    headers: dict[str, str]

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers as ASGI has them."""
        return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Where to connect, and from which pages."""

    path: str
    origins: Origins


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """A handshake that is right; who sent it, if it says so, is still to be found out."""

    accept: str
    encoding: Encoding
    credential: Credential | None


def parse(head: bytes) -> Request:
    """Parse a request head that an HTTP server has already found to be well-formed."""
    request_line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _ = request_line.split(" ")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.strip().lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return Request(method, target.partition("?")[0], headers)


def negotiate(request: Request, policy: Policy) -> Upgrade:
    """Return the handshake's outcome, or raise the error to answer with."""
    if request.path != policy.path:
        raise UnknownPathError(f"there is no WebSocket at {request.path[:80]}; try {policy.path}")
    accept = _accept(request)
    credential = find(request.raw_headers())
    _check_origin(request, policy.origins, required=credential is not None and credential.source is not Source.HEADER)
    offered = _tokens(request.headers.get("sec-websocket-protocol", ""))
    encoding = Encoding.PROTOBUF if SUBPROTOCOL in offered else Encoding.JSON
    return Upgrade(accept=accept, encoding=encoding, credential=credential)


def accepted(upgrade: Upgrade) -> bytes:
    """Return the 101 response."""
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {upgrade.accept}"]
    if upgrade.encoding is Encoding.PROTOBUF:
        lines.append(f"Sec-WebSocket-Protocol: {SUBPROTOCOL}")
    return "\r\n".join([*lines, "", ""]).encode()


def refused(error: MevError) -> bytes:
    """Return `error` as an HTTP problem response."""
    body = orjson.dumps(error.problem())
    lines = [
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
        "Content-Type: application/problem+json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    if error.status == 401:
        lines.append("WWW-Authenticate: Bearer")
    if isinstance(error, UpgradeRequiredError):
        lines.append("Sec-WebSocket-Version: 13")
    if error.retry_after_s is not None:
        lines.append(f"Retry-After: {error.retry_after_s}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def _accept(request: Request) -> str:
    headers = request.headers
    if headers.get("sec-websocket-version") != "13":
        raise UpgradeRequiredError("Sec-WebSocket-Version is 13")
    if request.method != "GET" or "upgrade" not in _tokens(headers.get("connection", "").lower()):
        raise BadHandshakeError("a handshake is a GET request with Connection: Upgrade")
    key = headers.get("sec-websocket-key", "")
    if not _is_nonce(key):
        raise BadHandshakeError("Sec-WebSocket-Key is 16 bytes in base64")
    digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


def _is_nonce(key: str) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False


def _check_origin(request: Request, origins: Origins, *, required: bool) -> None:
    # Browsers send Origin and let any page connect anywhere; programs send none. What carries a cookie is a browser.
    origin = request.headers.get("origin", "")
    if not origin and "origin" not in request.headers and not required:
        return
    if not origins.trusted(origin, request.headers.get("host", "")):
        raise ForbiddenOriginError(f"pages of {origin[:80]} may not connect here")


def _tokens(header: str) -> list[str]:
    return [token.strip() for token in header.split(",")]
