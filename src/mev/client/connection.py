"""One WebSocket connection to the server, from the handshake to its close reason."""

import asyncio
import ssl as ssl_module
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import orjson
from google.protobuf.message import DecodeError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidMessage,
    InvalidStatus,
    ProxyError,
    WebSocketException,
)
from websockets.http11 import Response
from websockets.typing import Subprotocol

from mev.client.errors import (
    BadUrlError,
    DisconnectedError,
    ForbiddenError,
    MessageTooBigError,
    NotAServerError,
    StreamError,
    UnauthorizedError,
)
from mev.core.tasks import cancel
from mev.wire.pb.stream_pb2 import Frame

PATH = "/api/realtime/ws"
_SUBPROTOCOL = Subprotocol("mev.v1.protobuf")
_CLOSE_TIMEOUT_S = 2.0
_TOO_BIG = 1009
_UNAUTHORIZED = 4401
_WORDS = {
    1001: "the server goes away",
    1006: "it broke off",
    1013: "the server has no room for it now",
}
_FINAL: dict[int, tuple[type[StreamError], str, str]] = {
    1008: (
        ForbiddenError,
        "not permitted",
        "the stream needs a key with the permission stream:read",
    ),
    _TOO_BIG: (
        MessageTooBigError,
        "a message of this client is above what the server takes",
        "use shorter filters and lists of topics",
    ),
    _UNAUTHORIZED: (
        UnauthorizedError,
        "the credential is not valid any more",
        "start again with one that is (`mev config key`)",
    ),
    4403: (
        DisconnectedError,
        "an operator ended this connection",
        "ask them before you connect again",
    ),
}
_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


class TryAgainError(Exception):
    """The connection failed or ended, and a retry is worthwhile."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """Settings of a connection."""

    url: str
    ssl: ssl_module.SSLContext | None
    open_timeout_s: float
    idle_timeout_s: float
    max_message_bytes: int
    renewable: bool  # a new credential can be fetched


def stream_url(url: str) -> str:
    """Return the address of the stream; `url` may be the address of the API.

    :raises BadUrlError: when `url` is not a valid address.
    """
    try:
        parts = urlsplit(url)
        scheme, _ = _SCHEMES[parts.scheme], parts.port
    except (KeyError, ValueError):
        raise BadUrlError(
            f"{url!r} is no address of a server; give for instance http://localhost:8000"
        ) from None
    if not parts.hostname:
        raise BadUrlError(f"{url!r} names no host; give for instance http://localhost:8000")
    path = parts.path if parts.path not in {"", "/"} else PATH
    return urlunsplit((scheme, parts.netloc, path, parts.query, ""))


class StreamConnection:
    """An open connection; messages are queued, and discarded when the connection is closed."""

    def __init__(self, socket: ClientConnection, settings: ConnectionSettings) -> None:
        self._socket = socket
        self._settings = settings
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._receiving = 0  # odd while a read is pending
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._watch())]

    @classmethod
    async def open(cls, settings: ConnectionSettings, credential: str) -> "StreamConnection":
        """Open a connection.

        :raises StreamError: when a retry is useless.
        :raises TryAgainError: when a retry is worthwhile.
        """
        try:
            # No automatic ping: it would close the connection of a user that reads slowly.
            socket = await connect(
                settings.url,
                additional_headers={"Authorization": f"Bearer {credential}"},
                subprotocols=[_SUBPROTOCOL],
                compression=None,
                ssl=settings.ssl,
                open_timeout=settings.open_timeout_s,
                close_timeout=_CLOSE_TIMEOUT_S,
                ping_interval=None,
                max_size=settings.max_message_bytes,
            )
        except InvalidStatus as error:
            raise _refusal(settings.url, error.response) from None
        except ssl_module.SSLCertVerificationError as error:
            raise NotAServerError(
                f"the certificate of {settings.url} is not trusted ({error.verify_message}); "
                "give Stream an ssl context that trusts it"
            ) from None
        except (OSError, EOFError, InvalidMessage, ProxyError) as error:
            raise TryAgainError(
                f"{settings.url} does not answer: {str(error) or type(error).__name__}"
            ) from None
        except WebSocketException as error:
            raise NotAServerError(f"{settings.url} does not speak this protocol: {error}") from None
        if socket.subprotocol != _SUBPROTOCOL:
            await socket.close()
            raise NotAServerError(f"{settings.url} is a WebSocket without {_SUBPROTOCOL}")
        return cls(socket, settings)

    def send(self, message: object) -> None:
        """Queue a message for sending."""
        self._outbox.put_nowait(orjson.dumps(message))

    async def receive(self) -> tuple[dict[str, Any] | Frame, int]:
        """Return the next message and its size.

        :raises StreamError: when the connection ended and a retry is useless.
        :raises TryAgainError: when the connection ended and a retry is worthwhile.
        """
        self._receiving += 1
        try:
            data = await self._socket.recv()
        except ConnectionClosed as error:
            raise self._ended(error) from None
        finally:
            self._receiving += 1
        try:
            return (_control(data) if isinstance(data, str) else Frame.FromString(data)), len(data)
        except (ValueError, DecodeError) as error:
            raise TryAgainError(
                f"the server sent what is no message of the protocol: {error}"
            ) from None

    async def close(self) -> None:
        """Close the connection in any state."""
        await cancel(*self._tasks)
        closing = asyncio.create_task(self._socket.close())
        with suppress(ConnectionClosed):
            while True:  # the server's close frame follows the messages it sent before
                await self._socket.recv()
        await closing

    def abort(self) -> None:
        """Abort the connection without a close handshake."""
        self._socket.transport.abort()

    async def _write(self) -> None:
        with suppress(ConnectionClosed):  # `receive` reports the reason
            while True:
                await self._socket.send(await self._outbox.get(), text=True)

    async def _watch(self) -> None:
        """Abort a connection that is being read but delivers nothing, not even a pong."""
        with suppress(ConnectionClosed):
            while True:
                await asyncio.sleep(self._settings.idle_timeout_s)
                before = self._receiving
                if before % 2:
                    pong = asyncio.ensure_future(await self._socket.ping())
                    await asyncio.wait([pong], timeout=self._settings.idle_timeout_s)
                    if self._receiving == before and not pong.done():
                        self.abort()

    def _ended(self, error: ConnectionClosed) -> StreamError | TryAgainError:
        if error.sent is not None and not error.rcvd_then_sent:
            if error.sent.code == _TOO_BIG:
                return MessageTooBigError(
                    f"the server sent a message above {self._settings.max_message_bytes} "
                    "bytes; give Stream a larger max_message_bytes"
                )
            return TryAgainError(
                f"the connection was closed by this side: {error.sent.reason or error.sent.code}"
            )
        code, reason = (
            (error.rcvd.code, error.rcvd.reason) if error.rcvd is not None else (1006, "")
        )
        if code not in _FINAL or (code == _UNAUTHORIZED and self._settings.renewable):
            return TryAgainError(f"the connection ended: {reason or _WORDS.get(code, code)}")
        kind, words, remedy = _FINAL[code]
        return kind(f"{reason.rstrip('.') or words}; {remedy}")


def _control(text: str) -> dict[str, Any]:
    message = orjson.loads(text)
    if not isinstance(message, dict) or not isinstance(message.get("op"), str):
        raise ValueError("a control message is an object with op")  # noqa: TRY004
    return message


def _refusal(url: str, response: Response) -> StreamError | TryAgainError:
    detail = _detail(response)
    match response.status_code:
        case 401:
            return UnauthorizedError(
                f"{url} does not know this credential: {detail}; check api_key (`mev config "
                "key`, `mev key create`)"
            )
        case 403:
            return ForbiddenError(
                f"{url} refuses this credential: {detail}; the stream needs a key with the "
                "permission stream:read"
            )
        case 408 | 425 | 429 | 500 | 502 | 503 | 504:
            return TryAgainError(
                f"{url} takes no connection now: {detail}",
                _seconds(response.headers.get("Retry-After")),
            )
        case status:
            return NotAServerError(
                f"{url} answers HTTP {status}: {detail}; check the address, it ends in {PATH}"
            )


def _detail(response: Response) -> str:
    try:
        return str(orjson.loads(response.body)["detail"]).rstrip(".")
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase or str(response.status_code)


def _seconds(text: str | None) -> float:
    return float(text) if text and text.isdecimal() else 0.0
