"""One QUIC connection: its packets, its timer, the requests in it, and the one session it may have."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from aioquic.h3.connection import ErrorCode, H3Connection, ProtocolError
from aioquic.h3.events import DataReceived, H3Event, Headers, HeadersReceived, WebTransportStreamDataReceived
from aioquic.quic import events
from aioquic.quic.connection import NetworkAddress, QuicConnection

from mev.auth.browser import Origins
from mev.auth.model import Principal
from mev.core.errors import MevError, UnavailableError
from mev.realtime.errors import TooManyConnectionsError
from mev.realtime.guard import Guard
from mev.realtime.hub import Hub
from mev.realtime.session import Identify, Session
from mev.realtime.tally import Encoding
from mev.realtime.webtransport import quic, requests
from mev.realtime.webtransport.bounds import Bounds
from mev.realtime.webtransport.counts import Counts
from mev.realtime.webtransport.link import WebTransport
from mev.realtime.webtransport.requests import Connect

REFUSED = 1
"""The stream error a client sees on a stream that nobody asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Who decides about requests, and what they know."""

    hub: Hub
    guard: Guard
    origins: Origins
    bounds: Bounds
    counts: Counts


class Port(Protocol):
    """The socket, and who shares it."""

    def send(self, data: bytes, address: NetworkAddress) -> None:
        """Send a packet."""

    def wake(self, connection: "Connection") -> None:
        """Call :meth:`Connection.transmit` soon."""

    def run(self, connection: "Connection", work: Callable[[], None]) -> None:
        """Do something with a connection; whatever goes wrong ends it, and nothing else."""

    def route(self, connection_id: bytes, connection: "Connection") -> None:
        """Send packets for `connection_id` to a connection."""

    def unroute(self, connection_id: bytes) -> None:
        """Drop them from now on."""

    def established(self, connection: "Connection") -> None:
        """Note that a handshake is finished."""

    def sessions(self, counted_as: str) -> int:
        """Return how many sessions an address has."""

    def forget(self, connection: "Connection") -> None:
        """Forget a connection that is over."""


class Connection:
    """Feeds packets to the library, sends what it wants to send, and acts on what it makes of them."""

    def __init__(self, library: QuicConnection, port: Port, desk: Desk, *, remote: NetworkAddress, counted_as: str) -> None:
        self.quic = library
        self.counted_as = counted_as
        self.link: WebTransport | None = None
        self.closed = False
        """Whether the peer is told that the connection is over."""
        self._port = port
        self._desk = desk
        self._remote = remote
        self._loop = asyncio.get_running_loop()
        self._since = time.monotonic()
        self._h3: H3Connection | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._busy: asyncio.Task[None] | None = None
        self._request: int | None = None
        """The stream of the CONNECT request that became, or becomes, the session."""
        self._control: int | None = None
        self._early = bytearray()
        self._overhead = 0
        self._requests = 0
        self._over = False

    def receive(self, data: bytes, address: NetworkAddress) -> None:
        """Take a packet."""
        self.quic.receive_datagram(data, address, time.monotonic())
        self._handle_events()
        self.wake()

    def transmit(self) -> None:
        """Send what may be sent now, and a bounded part of what waits."""
        if self._over:
            return
        link = self.link
        if link is not None:
            link.acknowledged()
        more = link is not None and link.outbox.pump()
        self._send()
        if link is not None and more and link.outbox.waits and not link.outbox.unsent():
            self.wake()
        self._arm()

    def tick(self, now: float) -> None:
        """Do what is due."""
        if self.link is not None:
            self.link.tick(now)
        elif now - self._since >= self._desk.bounds.connect_timeout_s:
            self.close()

    def wake(self) -> None:
        """Send soon what there is to send."""
        if not self._over:
            self._port.wake(self)

    def end_request(self, stream_id: int, data: bytes) -> None:
        """Send the last data of a request's answer."""
        if self._h3 is not None:
            with contextlib.suppress(RuntimeError, ValueError, ProtocolError):  # the peer wants no more of it
                self._h3.send_data(stream_id, data, end_stream=True)

    def close(self, error_code: int = ErrorCode.H3_NO_ERROR) -> None:
        """End the connection; it is forgotten once no packet of it can be under way any more."""
        self.closed = True
        self.quic.close(error_code)
        self.wake()

    def fail(self) -> None:
        """Tell the peer of an error of ours, as far as that goes."""
        self.close(ErrorCode.H3_INTERNAL_ERROR)
        self._send()

    def drop(self) -> None:
        """Forget the connection now."""
        if self._over:
            return
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._busy is not None:
            self._busy.cancel()
        if self.link is not None:
            self.link.gone()
        self._port.forget(self)

    def _send(self) -> None:
        for data, address in self.quic.datagrams_to_send(time.monotonic()):
            self._port.send(data, address)

    def _arm(self) -> None:
        # Timers mostly move back: one that fires early is set again, which is cheaper than moving it with each packet.
        at = self.quic.get_timer()
        if at is None or self._over:
            return
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0, at - time.monotonic()), self._port.run, self, self._fire)

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
                self._desk.counts.datagrams_ignored += 1
            case events.StreamReset() | events.StopSendingReceived():
                self._handle_http(event)
                if self.link is not None:
                    self.link.stream_reset(event.stream_id)
            case events.PingAcknowledged():
                if self.link is not None:
                    self.link.alive()
            case events.ConnectionIdIssued():
                self._port.route(event.connection_id, self)
            case events.ConnectionIdRetired():
                self._port.unroute(event.connection_id)
            case events.ProtocolNegotiated():
                self._h3 = H3Connection(self.quic, enable_webtransport=True)
            case events.HandshakeCompleted():
                self._port.established(self)
            case events.ConnectionTerminated():
                self.drop()
            case _:
                pass

    def _receive_stream(self, event: events.StreamDataReceived) -> None:
        if event.stream_id != self._control:
            self._overhead += len(event.data)
            if self._overhead > self._desk.bounds.overhead_bytes:
                self.close(ErrorCode.H3_EXCESSIVE_LOAD)
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
                if self.link is not None and event.stream_id == self._request:
                    self.link.capsules_received(event.data, ended=event.stream_ended)
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
        elif self.link is not None:
            self.link.control_received(event.stream_id, event.data)
        else:  # it overtook the request, or the request is being looked at
            self._early += event.data
            if len(self._early) > self._desk.bounds.early_bytes:
                self.close(ErrorCode.H3_EXCESSIVE_LOAD)

    def _refuse_stream(self, stream_id: int) -> None:
        self._desk.counts.streams_refused += 1
        quic.refuse_stream(self.quic, stream_id, REFUSED)
        self._count_request()

    def _count_request(self) -> None:
        self._requests += 1
        if self._requests > self._desk.bounds.requests:
            self.close(ErrorCode.H3_EXCESSIVE_LOAD)

    def _receive_request(self, event: HeadersReceived) -> None:
        if event.stream_id == self._request:
            return  # trailers
        self._count_request()
        desk, stream_id = self._desk, event.stream_id
        try:
            connect = requests.read(event.headers, desk.origins)
            self._check_room()
            peer = self._remote[0]
            identify = partial(desk.guard.identify, peer=peer, headers=connect.headers)
            if connect.credential is None:
                desk.guard.count_stranger(peer, connect.headers)
            principal = desk.guard.known(connect.credential) if connect.credential else None
            if connect.credential is None or principal is not None:
                self._accept(stream_id, identify, principal)
            else:
                self._request = stream_id
                self._busy = self._loop.create_task(self._identify(stream_id, identify, connect))
        except MevError as error:
            self._decline(stream_id, error)

    def _check_room(self) -> None:
        bounds, counts = self._desk.bounds, self._desk.counts
        if self._request is not None:
            raise TooManyConnectionsError("this connection has its session; open another connection", retry_after_s=1)
        if self._desk.hub.full or counts.sessions >= bounds.sessions:
            raise TooManyConnectionsError("the server has as many sessions as it may; try again later", retry_after_s=5)
        if self._port.sessions(self.counted_as) >= bounds.sessions_per_address:
            raise TooManyConnectionsError(f"your address has {bounds.sessions_per_address} sessions, as many as one may", retry_after_s=5)

    async def _identify(self, stream_id: int, identify: Identify, connect: Connect) -> None:
        try:
            if connect.credential is not None:
                self._accept(stream_id, identify, await identify(connect.credential))
        except MevError as error:
            self._decline(stream_id, error)
        except TimeoutError:
            self._decline(stream_id, UnavailableError("who you are could not be found out in time; try again", retry_after_s=5))
        except Exception:
            self.close(ErrorCode.H3_INTERNAL_ERROR)
            raise
        finally:
            self._busy = None
        self.wake()

    def _accept(self, stream_id: int, identify: Identify, principal: Principal | None) -> None:
        desk = self._desk
        if principal is not None:
            desk.guard.check(principal)
        self._respond(stream_id, requests.ACCEPTED)
        self._request = stream_id
        self.link = link = WebTransport(self, stream_id, desk.bounds, desk.counts)
        client = desk.hub.admit(link, Encoding.PROTOBUF, f"{self._remote[0]}:{self._remote[1]}")
        link.begin(desk.hub, desk.guard, client, Session(desk.hub, client, desk.guard, identify, principal))
        if self._control is not None:
            link.control_received(self._control, bytes(self._early))
            self._early.clear()

    def _decline(self, stream_id: int, error: MevError) -> None:
        self._desk.counts.requests_refused += 1
        if self._request == stream_id:
            self._request = None
        headers, body = requests.refusal(error)
        self._respond(stream_id, headers)
        self.end_request(stream_id, body)

    def _respond(self, stream_id: int, headers: Headers) -> None:
        if self._h3 is not None:
            with contextlib.suppress(RuntimeError, ValueError, ProtocolError):
                self._h3.send_headers(stream_id, headers)
