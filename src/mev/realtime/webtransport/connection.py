"""One QUIC connection: its packets, its timer, its requests, and its only session."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from aioquic.h3.connection import ErrorCode, H3Connection, ProtocolError
from aioquic.h3.events import (
    DataReceived,
    H3Event,
    Headers,
    HeadersReceived,
    WebTransportStreamDataReceived,
)
from aioquic.quic import events
from aioquic.quic.connection import NetworkAddress, QuicConnection

from mev.auth.browser import Origins
from mev.auth.model import Principal
from mev.core.errors import MevError, UnavailableError
from mev.realtime.access import StreamAccess
from mev.realtime.batch import Encoding
from mev.realtime.errors import TooManyConnectionsError
from mev.realtime.hub import Hub
from mev.realtime.limits import WebTransportLimits
from mev.realtime.metrics import WebTransportCounts
from mev.realtime.requests import Identify, RequestHandler
from mev.realtime.webtransport import handshake, quic
from mev.realtime.webtransport.handshake import Connect
from mev.realtime.webtransport.session import WebTransportSession

REFUSED = 1
"""Stream error code for streams that are not part of the protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestContext:
    """Dependencies for handling requests."""

    hub: Hub
    access: StreamAccess
    origins: Origins
    bounds: WebTransportLimits
    counts: WebTransportCounts


class Port(Protocol):
    """The shared socket, as a connection uses it."""

    def send(self, data: bytes, address: NetworkAddress) -> None:
        """Send a packet."""

    def wake(self, connection: "WebTransportConnection") -> None:
        """Schedule a call of :meth:`WebTransportConnection.transmit`."""

    def run(self, connection: "WebTransportConnection", work: Callable[[], None]) -> None:
        """Run `work` for a connection; an error closes only that connection."""

    def route(self, connection_id: bytes, connection: "WebTransportConnection") -> None:
        """Route packets for `connection_id` to a connection."""

    def unroute(self, connection_id: bytes) -> None:
        """Stop routing packets for `connection_id`."""

    def established(self, connection: "WebTransportConnection") -> None:
        """Record a completed handshake."""

    def sessions(self, counted_as: str) -> int:
        """Return the number of sessions of an address."""

    def forget(self, connection: "WebTransportConnection") -> None:
        """Remove a closed connection."""


class WebTransportConnection:
    """Passes packets to and from the QUIC library, and handles its events."""

    def __init__(
        self,
        library: QuicConnection,
        port: Port,
        context: RequestContext,
        *,
        remote: NetworkAddress,
        counted_as: str,
    ) -> None:
        self.quic = library
        self.counted_as = counted_as
        self.session: WebTransportSession | None = None
        self.closed = False
        """True once the peer has been sent the close."""
        self.last_packets: Sequence[tuple[bytes, NetworkAddress]] = ()
        """The packets that closed the connection, for resending."""
        self._port = port
        self._context = context
        self._remote = remote
        self._loop = asyncio.get_running_loop()
        self._since = time.monotonic()
        self._h3: H3Connection | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._busy: asyncio.Task[None] | None = None
        self._request: int | None = None
        """The stream of the CONNECT request of the session, accepted or pending."""
        self._control: int | None = None
        self._early = bytearray()
        self._overhead = 0
        self._requests = 0
        self._is_established = False
        self._over = False

    def receive(self, data: bytes, address: NetworkAddress) -> None:
        """Handle a packet."""
        self.quic.receive_datagram(data, address, time.monotonic())
        self._handle_events()
        self.wake()

    def transmit(self) -> None:
        """Send packets, including a bounded amount of queued data."""
        if self._over:
            return
        session = self.session
        if session is not None:
            session.acknowledged()
        more = session is not None and session.outbox.pump()
        self._send()
        if session is not None and more and session.outbox.waits and not session.outbox.unsent():
            self.wake()
        self._arm()

    def tick(self, now: float) -> None:
        """Apply time-outs."""
        bounds = self._context.bounds
        idle_at = quic.idle_at(self.quic)
        if self.closed:
            return
        if self.session is None and now - self._since >= bounds.connect_timeout_s:
            self.close(f"no session was asked for within {bounds.connect_timeout_s:g} s")
        elif idle_at is not None and idle_at - now <= 2 * bounds.tick_s:
            # Close before the library does so silently.
            self.close(f"nothing was received for {quic.idle_timeout_s(self.quic):.3g} s")
        elif self.session is not None:
            self.session.tick(now)

    def wake(self) -> None:
        """Schedule sending."""
        if not self._over:
            self._port.wake(self)

    def end_request(self, stream_id: int, data: bytes) -> None:
        """Send the last data of a response."""
        if self._h3 is not None:
            # Fails if the peer has stopped the stream.
            with contextlib.suppress(RuntimeError, ValueError, ProtocolError):
                self._h3.send_data(stream_id, data, end_stream=True)

    def close(self, reason: str, error_code: int = ErrorCode.H3_NO_ERROR) -> None:
        """Close the connection with a reason."""
        self.closed = True
        self.quic.close(error_code, reason_phrase=reason)
        self.wake()

    def fail(self) -> None:
        """Close the connection because of an internal error."""
        self.close("an error of the server", ErrorCode.H3_INTERNAL_ERROR)
        self._send()

    def drop(self) -> None:
        """Release the connection now."""
        if self._over:
            return
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._busy is not None:
            self._busy.cancel()
        if self.session is not None:
            self.session.release()
        self._port.forget(self)

    def _send(self) -> None:
        is_last = quic.is_about_to_close(self.quic)
        packets = self.quic.datagrams_to_send(time.monotonic())
        for data, address in packets:
            self._port.send(data, address)
        if is_last:
            if self._is_established:
                self.last_packets = packets
            self.drop()

    def _arm(self) -> None:
        # Timers mostly move later: an early one is reset, which is cheaper than moving it each
        # time.
        at = self.quic.get_timer()
        if at is None or self._over:
            return
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(
            max(0, at - time.monotonic()), self._port.run, self, self._fire
        )

    def _fire(self) -> None:
        self._timer = None
        now = time.monotonic()
        at = self.quic.get_timer()
        if at is not None and at <= now + 0.001:
            self.quic.handle_timer(max(at, now))
            self._handle_events()
            self.wake()
        else:
            self._arm()

    def _handle_events(self) -> None:
        while (event := self.quic.next_event()) is not None:
            self._handle(event)

    def _handle(self, event: events.QuicEvent) -> None:
        match event:
            case events.StreamDataReceived():
                self._receive_stream(event)
            case events.DatagramFrameReceived():
                self._context.counts.datagrams_ignored += 1
            case events.StreamReset() | events.StopSendingReceived():
                self._handle_http(event)
                if self.session is not None:
                    self.session.stream_reset(event.stream_id)
            case events.PingAcknowledged():
                if self.session is not None:
                    self.session.alive()
            case events.ConnectionIdIssued():
                self._port.route(event.connection_id, self)
            case events.ConnectionIdRetired():
                self._port.unroute(event.connection_id)
            case events.ProtocolNegotiated():
                self._h3 = H3Connection(self.quic, enable_webtransport=True)
            case events.HandshakeCompleted():
                self._is_established = True
                self._port.established(self)
            case events.ConnectionTerminated():
                self.drop()
            case _:
                pass

    def _receive_stream(self, event: events.StreamDataReceived) -> None:
        if event.stream_id != self._control:
            self._overhead += len(event.data)
            limit = self._context.bounds.overhead_bytes
            if self._overhead > limit:
                self.close(
                    f"more than {limit} bytes beside the control stream",
                    ErrorCode.H3_EXCESSIVE_LOAD,
                )
                return
        self._handle_http(event)

    def _handle_http(self, event: events.QuicEvent) -> None:
        if self._h3 is not None:
            for found in self._h3.handle_event(event):
                self._handle_h3(found)

    def _handle_h3(self, event: H3Event) -> None:
        match event:
            case HeadersReceived():
                self._receive_request(event)
            case DataReceived():
                if self.session is not None and event.stream_id == self._request:
                    self.session.capsules_received(event.data, ended=event.stream_ended)
            case WebTransportStreamDataReceived():
                self._receive_webtransport(event)
            case _:
                pass

    def _receive_webtransport(self, event: WebTransportStreamDataReceived) -> None:
        mine = self._request is None or event.session_id == self._request
        if self._control is None and mine and event.stream_id % 4 == 0:
            self._control = event.stream_id
        if event.stream_id != self._control:
            self._refuse_stream(event.stream_id)
        elif self.session is not None:
            self.session.control_received(event.stream_id, event.data)
        else:  # it arrived before the request, or while the request is checked
            self._early += event.data
            limit = self._context.bounds.early_bytes
            if len(self._early) > limit:
                self.close(
                    f"more than {limit} bytes before the session was accepted",
                    ErrorCode.H3_EXCESSIVE_LOAD,
                )

    def _refuse_stream(self, stream_id: int) -> None:
        self._context.counts.streams_refused += 1
        quic.refuse_stream(self.quic, stream_id, REFUSED)
        self._count_request()

    def _count_request(self) -> None:
        self._requests += 1
        limit = self._context.bounds.requests
        if self._requests > limit:
            self.close(
                f"more than {limit} requests and streams that are refused",
                ErrorCode.H3_EXCESSIVE_LOAD,
            )

    def _receive_request(self, event: HeadersReceived) -> None:
        if event.stream_id == self._request:
            return  # trailers
        self._count_request()
        context, stream_id = self._context, event.stream_id
        try:
            connect = handshake.read(event.headers, context.origins)
            self._check_room()
            peer = self._remote[0]
            identify = partial(context.access.identify, peer=peer, headers=connect.headers)
            if connect.credential is None:
                context.access.count_stranger(peer, connect.headers)
            principal = context.access.known(connect.credential) if connect.credential else None
            if connect.credential is None or principal is not None:
                self._accept(stream_id, identify, principal)
            else:
                self._request = stream_id
                self._busy = self._loop.create_task(self._identify(stream_id, identify, connect))
        except MevError as error:
            self._decline(stream_id, error)

    def _check_room(self) -> None:
        bounds, counts = self._context.bounds, self._context.counts
        if self._request is not None:
            raise TooManyConnectionsError(
                "this connection has its session; open another connection", retry_after_s=1
            )
        self._context.hub.check_room()
        if counts.sessions >= bounds.sessions:
            raise TooManyConnectionsError("session limit reached; try again later", retry_after_s=5)
        if self._port.sessions(self.counted_as) >= bounds.sessions_per_address:
            raise TooManyConnectionsError(
                f"your address has {bounds.sessions_per_address} sessions, which is the limit",
                retry_after_s=5,
            )

    async def _identify(self, stream_id: int, identify: Identify, connect: Connect) -> None:
        try:
            if connect.credential is not None:
                self._accept(stream_id, identify, await identify(connect.credential))
        except MevError as error:
            self._decline(stream_id, error)
        except TimeoutError:
            self._decline(
                stream_id,
                UnavailableError(
                    "the credential could not be checked in time; try again", retry_after_s=5
                ),
            )
        except Exception:
            self.close("an error of the server", ErrorCode.H3_INTERNAL_ERROR)
            raise
        finally:
            self._busy = None
        self.wake()

    def _accept(self, stream_id: int, identify: Identify, principal: Principal | None) -> None:
        context = self._context
        if principal is not None:
            context.access.check(principal)
        self._respond(stream_id, handshake.ACCEPTED)
        self._request = stream_id
        session = WebTransportSession(self, stream_id, context.bounds, context.counts)
        self.session = session
        remote = f"{self._remote[0]}:{self._remote[1]}"
        client = context.hub.admit(session, Encoding.PROTOBUF, remote)
        session.begin(
            context.hub,
            context.access,
            client,
            RequestHandler(context.hub, client, context.access, identify, principal),
        )
        if self._control is not None:
            session.control_received(self._control, bytes(self._early))
            self._early.clear()

    def _decline(self, stream_id: int, error: MevError) -> None:
        self._context.counts.requests_refused += 1
        if self._request == stream_id:
            self._request = None
        headers, body = handshake.refusal(error)
        self._respond(stream_id, headers)
        self.end_request(stream_id, body)

    def _respond(self, stream_id: int, headers: Headers) -> None:
        if self._h3 is not None:
            with contextlib.suppress(RuntimeError, ValueError, ProtocolError):
                self._h3.send_headers(stream_id, headers)
