"""WebSocket connections inside uvicorn, on the port of the HTTP application.

uvicorn makes one protocol object for each upgrade request, gives it the transport and the request head, and then routes the socket's
bytes to it. This module is the only one that knows about that, and about asyncio transports.
"""

import asyncio
import logging
from collections.abc import Coroutine, MutableSet
from functools import partial
from typing import Any, cast

from mev.auth.browser import Origins
from mev.auth.credentials import Credential
from mev.auth.model import Principal
from mev.core.errors import MevError, UnavailableError
from mev.realtime import handshake, websocket
from mev.realtime.client import Client
from mev.realtime.errors import TooManyConnectionsError
from mev.realtime.guard import Guard
from mev.realtime.handshake import Policy, Upgrade
from mev.realtime.hub import Hub
from mev.realtime.link import EncodedFrame
from mev.realtime.session import Identify, Session
from mev.realtime.websocket import Close, Message, Opcode, Parser, ProtocolError

PATH = "/api/realtime/ws"

_log = logging.getLogger(__name__)


def websocket_class(hub: Hub, guard: Guard, *, origins: Origins | None = None, path: str = PATH) -> type[asyncio.Protocol]:
    """Return the class to give uvicorn: `uvicorn.Config(app, ws=websocket_class(hub, ...), http="httptools")`.

    `guard` says who may read; `origins` are the web origins, besides the server's own, whose pages may connect.
    """
    policy = Policy(path=path, origins=origins or Origins())

    class BoundWebSocket(WebSocket):
        """A connection of this hub, made the way uvicorn makes them."""

        def __init__(self, *, config: Any, server_state: Any, app_state: Any) -> None:
            del config, app_state
            super().__init__(hub, guard, policy, server_state.connections)

    return BoundWebSocket


class WebSocket(asyncio.Protocol):
    """One connection: handshake, then messages to its session; frames from the hub go straight to the transport."""

    def __init__(self, hub: Hub, guard: Guard, policy: Policy, open_connections: MutableSet[asyncio.Protocol]) -> None:
        self._hub = hub
        self._guard = guard
        self._policy = policy
        self._open = open_connections
        self._parser = Parser(hub.limits.stranger_bytes)
        self._transport: asyncio.Transport
        self._client: Client | None = None
        self._session: Session
        self._close_sent = False
        self._deaf = False
        self._written = 0
        # While this runs, nothing more that the peer sends is handled: it is read no further, and what is here already is held.
        self._busy: asyncio.Task[None] | None = None
        self._held = bytearray()

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
        if self._busy is not None:
            self._busy.cancel()
        if self._client is not None:
            self._guard.leave(self._client)
            self._hub.release(self._client)

    def data_received(self, data: bytes) -> None:
        """Take the request head, then what the socket brings."""
        if self._busy is not None:
            self._hold(data)
        elif self._client is None:
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
            self._hub.dismiss(self._client, Close.GOING_AWAY, "the server is shutting down", resume="going_away")
        else:
            self._transport.close()

    # What the hub calls.

    @property
    def transport(self) -> str:
        """Say what this is."""
        return "websocket"

    def send_text(self, text: bytes) -> None:
        """Send a text message."""
        self._write(websocket.frame(Opcode.TEXT, text))

    def send_frame(self, frame: EncodedFrame, tail: bytes, *, stale: bool) -> None:
        """Send a binary message."""
        del stale  # what is behind on this stream cannot be given up
        if not tail:
            self._write(frame.message)
            return
        self._write(websocket.header(Opcode.BINARY, len(frame.payload) + len(tail)))
        self._write(frame.payload)
        self._write(tail)

    def send_datagram(self, payload: bytes) -> None:
        """Refuse: there are none."""
        raise NotImplementedError

    def datagram_bytes(self) -> int:
        """Say that there are no datagrams."""
        return 0

    def backlog(self) -> int:
        """Return how many bytes wait in the transport."""
        return self._transport.get_write_buffer_size()

    def taken(self) -> int:
        """Return how many bytes the kernel has taken."""
        return self._written - self.backlog()

    def ping(self) -> None:
        """Send a ping."""
        self._write(websocket.frame(Opcode.PING, b""))

    def close(self, code: int, reason: str) -> None:
        """Send a close frame; the transport is closed when the peer's arrives."""
        self._write(websocket.close_frame(code, reason))
        self._close_sent = True

    def abort(self) -> None:
        """Drop the connection."""
        self._transport.abort()

    def _write(self, data: bytes) -> None:
        if not self._close_sent:
            self._written += len(data)
            self._transport.write(data)

    def _open_session(self, head: bytes) -> None:
        if self._transport.is_closing():
            return
        try:
            request = handshake.parse(head)
            upgrade = handshake.negotiate(request, self._policy)
            if self._hub.full:
                raise TooManyConnectionsError("the server has as many connections as it may; try again later", retry_after_s=5)
            peer = _remote(self._transport).rpartition(":")[0]
            identify = partial(self._guard.identify, peer=peer, headers=request.raw_headers())
            if upgrade.credential is None:
                self._guard.count_stranger(peer, request.raw_headers())
            principal = self._guard.known(upgrade.credential) if upgrade.credential else None
            if upgrade.credential is None or principal is not None:
                self._accept(upgrade, identify, principal)
            else:
                self._await(self._identify(upgrade, identify, upgrade.credential))
        except MevError as error:
            self._decline(error)

    async def _identify(self, upgrade: Upgrade, identify: Identify, credential: Credential) -> None:
        try:
            self._accept(upgrade, identify, await identify(credential))
        except MevError as error:
            self._decline(error)
        except TimeoutError:
            self._decline(UnavailableError("who you are could not be found out in time; try again", retry_after_s=5))

    def _accept(self, upgrade: Upgrade, identify: Identify, principal: Principal | None) -> None:
        if principal is not None:
            self._guard.check(principal)
        self._transport.write(handshake.accepted(upgrade))
        self._client = self._hub.admit(self, upgrade.encoding, _remote(self._transport))
        self._session = Session(self._hub, self._client, self._guard, identify, principal)

    def _decline(self, error: MevError) -> None:
        self._deaf = True
        self._transport.write(handshake.refused(error))
        self._transport.close()

    def _await(self, work: Coroutine[None, None, None]) -> None:
        """Do what takes time before anything else the peer sends is handled."""
        self._transport.pause_reading()
        self._busy = asyncio.get_running_loop().create_task(self._until_done(work))

    async def _until_done(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception:
            self._transport.abort()
            raise
        self._busy = None
        if self._transport.is_closing():
            return
        self._transport.resume_reading()
        if self._client is not None and not self._deaf:
            held, self._held = bytes(self._held), bytearray()
            self._receive(self._client, held)

    def _hold(self, data: bytes) -> None:
        self._held += data
        if len(self._held) > self._parser.max_size:
            self._transport.abort()

    def _receive(self, client: Client, data: bytes) -> None:
        try:
            self._trust(client)
            for message in self._parser.feed(data):
                client.heard += 1
                self._dispatch(client, message)
                self._trust(client)
                if self._deaf or self._busy is not None:
                    return
        except ProtocolError as error:
            _log.debug("closing a connection: %s", error.reason, extra={"action": "realtime_protocol_error"})
            self._fail(client, error.code, error.reason)

    def _trust(self, client: Client) -> None:
        """Take large messages of somebody who is known."""
        if client.principal is not None:
            self._parser.max_size = self._hub.limits.message_bytes

    def _dispatch(self, client: Client, message: Message) -> None:
        match message.opcode:
            case Opcode.TEXT:
                work = self._session.receive_text(message.payload)
                if work is not None:
                    self._await(work)
            case Opcode.BINARY:
                self._session.receive_binary()
            case Opcode.PING:
                self._pong(client, message.payload)
            case Opcode.CLOSE:
                code = websocket.close_code(message.payload)
                self._hub.dismiss(client, Close.NORMAL if code is None else code, "")
                self._deaf = True
                self._transport.close()

    def _pong(self, client: Client, payload: bytes) -> None:
        if self.backlog() > self._hub.limits.soft_buffer_bytes + self._hub.limits.queue_bytes:
            self.abort()
        elif not client.closing:
            self._write(websocket.frame(Opcode.PONG, payload))

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
