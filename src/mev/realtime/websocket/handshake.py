"""WebSocket handshakes: the HTTP request is checked, and answered with 101 or a problem."""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from http import HTTPStatus

import orjson

from mev.auth.browser import Origins
from mev.auth.credentials import Credential, CredentialSource, find
from mev.core import asgi
from mev.core.errors import MevError
from mev.realtime.batch import Encoding
from mev.realtime.errors import (
    BadHandshakeError,
    ForbiddenOriginError,
    UnknownPathError,
    UpgradeRequiredError,
)
from mev.realtime.websocket.deflate import Deflate
from mev.realtime.websocket.deflate import negotiate as negotiate_deflate

SUBPROTOCOL = "mev.v1.protobuf"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


OPENAPI = {
    "tags": ["realtime"],
    "summary": "Open a stream over WebSocket",
    "description": "The request of a WebSocket handshake is answered 101, any other 426.",
    "responses": {
        "101": {"description": "The stream is open."},
        "426": {
            "description": "No handshake arrived.",
            "content": {"application/problem+json": {}},
        },
    },
}


async def refuse_without_upgrade(
    _scope: asgi.Scope, _receive: asgi.Receive, send: asgi.Send
) -> None:
    """Answer a request without a handshake at the WebSocket's path (RFC 9110 15.5.22)."""
    error = UpgradeRequiredError(
        "this path takes WebSocket handshakes only, and the request came without "
        "Upgrade: websocket; "
        "a proxy between may have dropped it: let it speak HTTP/1.1 to this server and pass on "
        "the headers Upgrade and Connection (nginx: proxy_http_version 1.1, "
        "proxy_set_header Upgrade $http_upgrade, "
        'proxy_set_header Connection "upgrade")'
    )
    headers = [
        (b"upgrade", b"websocket"),
        (b"connection", b"Upgrade"),
        (b"sec-websocket-version", b"13"),
    ]
    body = asgi.problem_body(error)
    await asgi.respond(send, error.status, body, *headers, content_type=asgi.PROBLEM_JSON.encode())


@dataclass(frozen=True, slots=True)
class HandshakeRequest:
    """A request head: path without query, and headers by lower-case name.

    Repeated headers are joined by a comma.
    """

    method: str
    path: str
    headers: dict[str, str]

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers in ASGI form."""
        return [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in self.headers.items()
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Path of the endpoint, and the allowed origins."""

    path: str
    origins: Origins
    deflate: bool = False
    """True if JSON connections may be compressed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """A valid handshake; its credential, if any, is not checked yet."""

    accept: str
    encoding: Encoding
    credential: Credential | None
    deflate: Deflate | None = None


def parse(head: bytes) -> HandshakeRequest:
    """Return the request in a head that an HTTP server has found to be well-formed."""
    request_line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _ = request_line.split(" ")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.strip().lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return HandshakeRequest(method, target.partition("?")[0], headers)


def negotiate(request: HandshakeRequest, policy: Policy) -> Upgrade:
    """Return the upgrade, or raise the error to answer with."""
    if request.path != policy.path:
        raise UnknownPathError(f"there is no WebSocket at {request.path[:80]}; try {policy.path}")
    accept = _accept(request)
    credential = find(request.raw_headers())
    _check_origin(
        request,
        policy.origins,
        required=credential is not None and credential.source is not CredentialSource.HEADER,
    )
    offered = _tokens(request.headers.get("sec-websocket-protocol", ""))
    encoding = Encoding.PROTOBUF if SUBPROTOCOL in offered else Encoding.JSON
    compressible = policy.deflate and encoding is Encoding.JSON
    extensions = request.headers.get("sec-websocket-extensions", "")
    return Upgrade(
        accept=accept,
        encoding=encoding,
        credential=credential,
        deflate=negotiate_deflate(extensions) if compressible else None,
    )


def accepted(upgrade: Upgrade) -> bytes:
    """Return the 101 response."""
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {upgrade.accept}",
    ]
    if upgrade.encoding is Encoding.PROTOBUF:
        lines.append(f"Sec-WebSocket-Protocol: {SUBPROTOCOL}")
    if upgrade.deflate is not None:
        lines.append(f"Sec-WebSocket-Extensions: {upgrade.deflate.header}")
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


def _accept(request: HandshakeRequest) -> str:
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


def _check_origin(request: HandshakeRequest, origins: Origins, *, required: bool) -> None:
    # Browsers send Origin, other programs do not. A request with a cookie comes from a browser.
    origin = request.headers.get("origin", "")
    if not origin and "origin" not in request.headers and not required:
        return
    if not origins.trusted(origin, request.headers.get("host", "")):
        raise ForbiddenOriginError(f"pages of {origin[:80]} may not connect here")


def _tokens(header: str) -> list[str]:
    return [token.strip() for token in header.split(",")]
