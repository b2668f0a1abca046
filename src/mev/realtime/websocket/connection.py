"""WebSocket connections inside uvicorn, on the port of the HTTP application.

uvicorn creates one protocol object for each upgrade request, passes it the transport and the
request head, and then the socket's bytes. Only this module depends on that, and on asyncio
transports.
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
from mev.realtime.access import StreamAccess
from mev.realtime.batch import EncodedFrame
from mev.realtime.client import Client
from mev.realtime.hub import Hub
from mev.realtime.link import CloseCode
from mev.realtime.requests import Identify, RequestHandler
from mev.realtime.websocket import handshake, protocol
from mev.realtime.websocket.deflate import Deflate, inflate
from mev.realtime.websocket.handshake import Policy, Upgrade
from mev.realtime.websocket.protocol import Message, Opcode, Parser, ProtocolError

PATH = "/api/realtime/ws"

_log = logging.getLogger(__name__)


def websocket_class(
    hub: Hub,
    access: StreamAccess,
    *,
    origins: Origins | None = None,
    path: str = PATH,
    deflate: bool = False,
) -> type[asyncio.Protocol]:
    """Return the class for `uvicorn.Config(app, ws=websocket_class(hub, ...), http="httptools")`.

    `access` authorizes readers; `origins` are web origins, besides the server's own, whose pages
    may connect; with `deflate`, JSON connections are compressed on request.
    """
    policy = Policy(path=path, origins=origins or Origins(), deflate=deflate)

    class BoundWebSocket(WebSocket):
        """A connection of this hub, with the constructor that uvicorn calls."""

        def __init__(self, *, config: Any, server_state: Any, app_state: Any) -> None:
            del config, app_state
            super().__init__(hub, access, policy, server_state.connections)

    return BoundWebSocket


class WebSocket(asyncio.Protocol):
    """One connection: handshake, then messages to its session and frames from the hub."""

    def __init__(
        self,
        hub: Hub,
        access: StreamAccess,
        policy: Policy,
        open_connections: MutableSet[asyncio.Protocol],
    ) -> None:
        self._hub = hub
        self._access = access
        self._policy = policy
        self._open = open_connections
        self._parser = Parser(hub.limits.unauthenticated_bytes)
        self._transport: asyncio.Transport
        self._client: Client | None = None
        self._requests: RequestHandler
        self._deflate: Deflate | None = None
        self._close_sent = False
        self._ignores_input = False
        self._written = 0
        # While this runs, reading is paused, and data that has arrived already is held.
        self._busy: asyncio.Task[None] | None = None
        self._kept_input = bytearray()

    # Interface for asyncio and uvicorn.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport = cast("asyncio.Transport", transport)
        soft = self._hub.limits.soft_buffer_bytes
        self._transport.set_write_buffer_limits(high=soft, low=soft // 2)
        self._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the connection."""
        del exc
        self._open.discard(self)
        if self._busy is not None:
            self._busy.cancel()
        if self._client is not None:
            self._access.unregister(self._client)
            self._hub.release(self._client)

    def data_received(self, data: bytes) -> None:
        """Handle the request head, then the socket's data."""
        if self._busy is not None:
            self._keep_input(data)
        elif self._client is None:
            self._open_session(data)
        elif not self._ignores_input:
            self._receive(self._client, data)

    def resume_writing(self) -> None:
        """Send queued events."""
        if self._client is not None and not self._client.closing:
            self._client.drain()

    def shutdown(self) -> None:
        """Close the connection because the server stops."""
        if self._client is not None:
            self._hub.disconnect(
                self._client,
                CloseCode.GOING_AWAY,
                "the server is shutting down",
                resume="going_away",
            )
        else:
            self._transport.close()

    # Interface for the hub.

    @property
    def transport(self) -> str:
        """Return the kind of transport."""
        return "websocket"

    def send_text(self, text: bytes, resume: str = "") -> None:
        """Send a text message."""
        del resume  # the text contains it
        packed = self._deflate.compress(text) if self._deflate is not None else None
        if packed is not None:
            self._write(protocol.frame(Opcode.TEXT, packed, compressed=True))
        else:
            self._write(protocol.frame(Opcode.TEXT, text))

    def send_frame(self, frame: EncodedFrame, tail: bytes, *, stale: bool) -> None:
        """Send a binary message."""
        del stale  # a WebSocket cannot drop frames
        if not tail:
            self._write(protocol.binary_message(frame))
            return
        self._write(protocol.header(Opcode.BINARY, len(frame.payload) + len(tail)))
        self._write(frame.payload)
        self._write(tail)

    def send_datagram(self, payload: bytes) -> None:
        """Raise: WebSockets have no datagrams."""
        raise NotImplementedError

    def datagram_bytes(self) -> int:
        """Return 0: WebSockets have no datagrams."""
        return 0

    def backlog(self) -> int:
        """Return the number of bytes in the transport's buffer."""
        return self._transport.get_write_buffer_size()

    def taken(self) -> int:
        """Return the number of bytes accepted by the kernel."""
        return self._written - self.backlog()

    def ping(self) -> None:
        """Send a ping."""
        self._write(protocol.frame(Opcode.PING, b""))

    def close(self, code: int, reason: str) -> None:
        """Send a close frame; the transport is closed when the peer's close frame arrives."""
        self._write(protocol.close_frame(code, reason))
        self._close_sent = True

    def abort(self, code: int, reason: str) -> None:
        """Drop the connection; the peer reads nothing, so it cannot be sent the reason."""
        _log.debug(
            "dropping a connection: %s (%d)", reason, code, extra={"action": "realtime_dropped"}
        )
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
            self._hub.check_room()
            peer = _remote(self._transport).rpartition(":")[0]
            identify = partial(self._access.identify, peer=peer, headers=request.raw_headers())
            if upgrade.credential is None:
                self._access.count_stranger(peer, request.raw_headers())
            principal = self._access.known(upgrade.credential) if upgrade.credential else None
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
            self._decline(
                UnavailableError(
                    "the credential could not be checked in time; try again", retry_after_s=5
                )
            )

    def _accept(self, upgrade: Upgrade, identify: Identify, principal: Principal | None) -> None:
        if principal is not None:
            self._access.check(principal)
        self._transport.write(handshake.accepted(upgrade))
        if upgrade.deflate is not None:
            self._deflate = upgrade.deflate
            self._parser = Parser(self._parser.max_size, inflate)
        self._client = self._hub.admit(self, upgrade.encoding, _remote(self._transport))
        self._requests = RequestHandler(self._hub, self._client, self._access, identify, principal)

    def _decline(self, error: MevError) -> None:
        self._ignores_input = True
        self._transport.write(handshake.refused(error))
        self._transport.close()

    def _await(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` before handling further data of the peer."""
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
        if self._client is not None and not self._ignores_input:
            held, self._kept_input = bytes(self._kept_input), bytearray()
            self._receive(self._client, held)

    def _keep_input(self, data: bytes) -> None:
        self._kept_input += data
        if len(self._kept_input) > self._parser.max_size:
            self._transport.abort()

    def _receive(self, client: Client, data: bytes) -> None:
        try:
            self._raise_limit(client)
            for message in self._parser.feed(data):
                client.heard += 1
                self._dispatch(client, message)
                self._raise_limit(client)
                if self._ignores_input or self._busy is not None:
                    return
        except ProtocolError as error:
            _log.debug(
                "closing a connection: %s",
                error.reason,
                extra={"action": "realtime_protocol_error"},
            )
            self._fail(client, error.code, error.reason)

    def _raise_limit(self, client: Client) -> None:
        """Raise the message limit once the client is authenticated."""
        if client.principal is not None:
            self._parser.max_size = self._hub.limits.message_bytes

    def _dispatch(self, client: Client, message: Message) -> None:
        match message.opcode:
            case Opcode.TEXT:
                work = self._requests.receive_text(message.payload)
                if work is not None:
                    self._await(work)
            case Opcode.BINARY:
                self._requests.receive_binary()
            case Opcode.PING:
                self._pong(client, message.payload)
            case Opcode.CLOSE:
                code = protocol.close_code(message.payload)
                self._hub.disconnect(client, CloseCode.NORMAL if code is None else code, "")
                self._ignores_input = True
                self._transport.close()

    def _pong(self, client: Client, payload: bytes) -> None:
        if self.backlog() > self._hub.limits.soft_buffer_bytes + self._hub.limits.queue_bytes:
            self.abort(CloseCode.TRY_AGAIN_LATER, "pings were sent and their answers not read")
        elif not client.closing:
            self._write(protocol.frame(Opcode.PONG, payload))

    def _fail(self, client: Client, code: CloseCode, reason: str) -> None:
        """Close the connection because of the peer's data; ignore further data."""
        self._ignores_input = True
        self._hub.disconnect(client, code, reason)
        # Closing a socket with unread bytes resets it, and the peer might miss the close frame.
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()


def _remote(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else str(peer or "")
