"""WebSocket connections inside uvicorn, on the port of the HTTP application.

uvicorn makes one protocol object for each upgrade request, gives it the transport and the request head, and then routes the socket's
bytes to it. This module is the only one that knows about that, and about asyncio transports.
"""

import asyncio
import logging
from collections.abc import Callable, MutableSet
from typing import Any, cast

from mev.core.errors import MevError
from mev.realtime import handshake, websocket
from mev.realtime.client import Client
from mev.realtime.errors import TooManyConnectionsError
from mev.realtime.handshake import Policy
from mev.realtime.hub import Hub
from mev.realtime.session import Session
from mev.realtime.websocket import Close, Message, Opcode, Parser, ProtocolError

PATH = "/api/realtime/ws"

_log = logging.getLogger(__name__)


def websocket_class(
    hub: Hub, *, authenticate: Callable[[str], bool], origins: frozenset[str] = frozenset(), path: str = PATH
) -> type[asyncio.Protocol]:
    """Return the class to give uvicorn: `uvicorn.Config(app, ws=websocket_class(hub, ...), http="httptools")`.

    `authenticate` says whether an API key is valid; `origins` are the web origins, besides the server's own, whose pages may connect.
    """
    policy = Policy(path=path, origins=origins, authenticate=authenticate)

    class BoundWebSocket(WebSocket):
        """A connection of this hub, made the way uvicorn makes them."""

        def __init__(self, *, config: Any, server_state: Any, app_state: Any) -> None:
            del config, app_state
            super().__init__(hub, policy, server_state.connections)

    return BoundWebSocket


class WebSocket(asyncio.Protocol):
    """One connection: handshake, then messages to its session; frames from the hub go straight to the transport."""

    def __init__(self, hub: Hub, policy: Policy, open_connections: MutableSet[asyncio.Protocol]) -> None:
        self._hub = hub
        self._policy = policy
        self._open = open_connections
        self._parser = Parser(hub.limits.message_bytes)
        self._transport: asyncio.Transport
        self._client: Client | None = None
        self._session: Session
        self._close_sent = False
        self._deaf = False

    # What asyncio and uvicorn call.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)
        soft = self._hub.limits.soft_buffer_bytes
        self._transport.set_write_buffer_limits(high=soft, low=soft // 2)
        self._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        del exc
        self._open.discard(self)
        if self._client is not None:
            self._hub.release(self._client)

    def data_received(self, data: bytes) -> None:
        """Take the request head, then what the socket brings."""
        if self._client is None:
            self._open_session(data)
        elif not self._deaf:
            self._receive(self._client, data)

    def resume_writing(self) -> None:
        """Send what waited for room."""
        if self._client is not None and not self._client.closing:
            self._client.drain()

    def shutdown(self) -> None:
        """Say that the server is going away."""
        if self._client is not None:
            self._hub.dismiss(self._client, Close.GOING_AWAY, "the server is shutting down")
        else:
            self._transport.close()

    # What the hub calls.

    def write(self, data: bytes | memoryview) -> None:
        """Hand bytes to the transport."""
        if not self._close_sent:
            self._transport.write(data)

    def backlog(self) -> int:
        """Return how many bytes wait in the transport."""
        return self._transport.get_write_buffer_size()

    def ping(self) -> None:
        """Send a ping."""
        self.write(websocket.frame(Opcode.PING, b""))

    def close(self, code: int, reason: str) -> None:
        """Send a close frame; the transport is closed when the peer's arrives."""
        self.write(websocket.close_frame(code, reason))
        self._close_sent = True

    def abort(self) -> None:
        """Drop the connection."""
        self._transport.abort()

    def _open_session(self, head: bytes) -> None:
        if self._transport.is_closing():
            return
        try:
            upgrade = handshake.negotiate(handshake.parse(head), self._policy)
            if self._hub.full:
                raise TooManyConnectionsError("the server has as many connections as it may; try again later", retry_after_s=5)
        except MevError as error:
            self._transport.write(handshake.refused(error))
            self._transport.close()
            return
        self._transport.write(handshake.accepted(upgrade))
        self._client = self._hub.admit(self, upgrade.encoding, _remote(self._transport))
        self._session = Session(self._hub, self._client, self._policy.authenticate, authenticated=upgrade.authenticated)

    def _receive(self, client: Client, data: bytes) -> None:
        try:
            for message in self._parser.feed(data):
                client.heard += 1
                self._dispatch(client, message)
                if self._deaf:
                    return
        except ProtocolError as error:
            _log.debug("closing a connection: %s", error.reason, extra={"action": "realtime_protocol_error"})
            self._fail(client, error.code, error.reason)

    def _dispatch(self, client: Client, message: Message) -> None:
        match message.opcode:
            case Opcode.TEXT:
                self._session.receive_text(message.payload)
            case Opcode.BINARY:
                self._session.receive_binary()
            case Opcode.PING:
                client.answer(websocket.frame(Opcode.PONG, message.payload))
            case Opcode.CLOSE:
                code = websocket.close_code(message.payload)
                self._hub.dismiss(client, Close.NORMAL if code is None else code, "")
                self._deaf = True
                self._transport.close()

    def _fail(self, client: Client, code: Close, reason: str) -> None:
        """Close because of what the peer sent; nothing more it sends is looked at."""
        self._deaf = True
        self._hub.dismiss(client, code, reason)
        # Closing the socket with bytes unread would reset it, and the peer might never see the close frame.
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()


def _remote(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else str(peer or "")
