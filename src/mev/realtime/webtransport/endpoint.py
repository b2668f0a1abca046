"""The UDP socket: routes packets to connections, admits new ones, and schedules sending."""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import NetworkAddress, QuicConnection
from aioquic.quic.packet import (
    QuicHeader,
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
)
from aioquic.quic.retry import QuicRetryTokenHandler

from mev.core.errors import MevError
from mev.core.token_bucket import TokenBucket
from mev.limits.addresses import Addresses
from mev.realtime.limits import WebTransportLimits
from mev.realtime.metrics import WebTransportCounts
from mev.realtime.webtransport import quic
from mev.realtime.webtransport.closed_connections import ClosedConnections
from mev.realtime.webtransport.connection import RequestContext, WebTransportConnection

LOG = logging.getLogger(__name__)
_LEAST_INITIAL = 1200
_READ_BYTES = 65_535
_READ_AT_ONCE = 64
_SLICE_S = 0.002
_SOCKET_BYTES = 4 << 20
_ID_BYTES = 8


class AddressUnusableError(MevError):
    """The address for WebTransport cannot be used."""

    code = "address_in_use"
    status = 409


class Endpoint:
    """A bound socket and its connections."""

    def __init__(self, context: RequestContext, configure: Callable[[], QuicConfiguration]) -> None:
        self.connections: dict[WebTransportConnection, set[bytes]] = {}
        """Each with its connection ids."""
        self.routes: dict[bytes, WebTransportConnection] = {}
        self.closed = ClosedConnections(
            keep_s=context.bounds.idle_timeout_s, limit=context.bounds.closed
        )
        self._context = context
        self._bounds: WebTransportLimits = context.bounds
        self._counts: WebTransportCounts = context.counts
        self._configure = configure
        self._addresses = Addresses()
        self._retry = QuicRetryTokenHandler()
        self._half_open: set[WebTransportConnection] = set()
        share = self._bounds.handshake_share
        self._handshake_time = TokenBucket(share, share, time.monotonic)
        """Processor seconds for handshakes: unauthenticated peers must not block this process."""
        self._of_address: Counter[str] = Counter()
        self._awake: dict[WebTransportConnection, None] = {}
        self._flushing = False
        self._accepting = True
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket

    def open(self, host: str, port: int) -> int:
        """Bind the socket; return its port.

        :raises AddressUnusableError: if it cannot be bound.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise AddressUnusableError(
                f"cannot listen on UDP {host}:{port} ({error.strerror}); "
                "choose another with WT_HOST and WT_PORT"
            ) from None
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BYTES)
        self._loop.add_reader(self._socket, self._readable)
        return int(self._socket.getsockname()[1])

    @property
    def is_ipv6(self) -> bool:
        """True if the socket is IPv6."""
        return self._socket.family == socket.AF_INET6

    @property
    def is_closed(self) -> bool:
        """True if every connection has been closed."""
        return all(connection.closed for connection in self.connections)

    def refuse(self) -> None:
        """Stop accepting connections."""
        self._accepting = False

    def close(self) -> None:
        """Close every connection and the socket."""
        for connection in list(self.connections):
            connection.close("the server is shutting down")
        self._flush()
        self._loop.remove_reader(self._socket)
        for connection in list(self.connections):
            connection.drop()
        self._socket.close()

    def tick(self, now: float) -> None:
        """Apply time-outs."""
        self.closed.expire(now)
        for connection in list(self.connections):
            self.run(connection, partial(connection.tick, now))

    # Interface for connections.

    def send(self, data: bytes, address: NetworkAddress) -> None:
        """Send a packet; it is lost if the kernel's buffer is full."""
        try:
            self._socket.sendto(data, address)
        except OSError:
            self._counts.packets_unsent += 1

    def wake(self, connection: WebTransportConnection) -> None:
        """Schedule a connection for sending, after those scheduled before."""
        self._awake[connection] = None
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def run(self, connection: WebTransportConnection, work: Callable[[], None]) -> None:
        """Run `work` for a connection; an error closes only that connection."""
        try:
            work()
        except Exception:
            LOG.exception(
                "a WebTransport connection failed", extra={"action": "webtransport_failed"}
            )
            self._counts.failures += 1
            with contextlib.suppress(Exception):  # the close is sent if possible
                connection.fail()
            connection.drop()

    def route(self, connection_id: bytes, connection: WebTransportConnection) -> None:
        """Route packets for `connection_id` to a connection."""
        self.routes[connection_id] = connection
        self.connections[connection].add(connection_id)

    def unroute(self, connection_id: bytes) -> None:
        """Stop routing packets for `connection_id`."""
        connection = self.routes.pop(connection_id, None)
        if connection is not None:
            self.connections[connection].discard(connection_id)

    def established(self, connection: WebTransportConnection) -> None:
        """Record a completed handshake."""
        self._half_open.discard(connection)

    def sessions(self, counted_as: str) -> int:
        """Return the number of sessions of an address."""
        return sum(
            1
            for each in self.connections
            if each.counted_as == counted_as and each.session is not None
        )

    def forget(self, connection: WebTransportConnection) -> None:
        """Remove a closed connection."""
        ids = self.connections.pop(connection, None)
        if ids is None:
            return
        for connection_id in ids:
            del self.routes[connection_id]
        self.closed.add(ids, connection.last_packets, time.monotonic())
        self._half_open.discard(connection)
        self._awake.pop(connection, None)
        self._counts.connections -= 1
        self._of_address[connection.counted_as] -= 1
        if not self._of_address[connection.counted_as]:
            del self._of_address[connection.counted_as]

    def _flush(self) -> None:
        self._flushing = False
        awake, self._awake = self._awake, {}
        for connection in awake:
            self.run(connection, connection.transmit)

    def _readable(self) -> None:
        until = time.perf_counter() + _SLICE_S
        for _ in range(_READ_AT_ONCE):
            try:
                data, address = self._socket.recvfrom(_READ_BYTES)
            except OSError:
                return
            self._receive(data, address)
            if time.perf_counter() >= until:
                return

    def _receive(self, data: bytes, address: NetworkAddress) -> None:
        header = quic.read_header(data, _ID_BYTES)
        if header is None:
            self._counts.packets_ignored += 1
            return
        connection = self.routes.get(header.destination_cid)
        if connection is not None and connection not in self._half_open:
            self.run(connection, partial(connection.receive, data, address))
        elif self._handshake_time.level() <= 0:
            self._counts.packets_given_up += 1
        else:
            began = time.thread_time()
            self._receive_early(connection, header, data, address)
            self._handshake_time.spend(time.thread_time() - began)

    def _receive_early(
        self,
        connection: WebTransportConnection | None,
        header: QuicHeader,
        data: bytes,
        address: NetworkAddress,
    ) -> None:
        """Process a packet of an unfinished handshake or of a closed connection."""
        if connection is None and header.destination_cid in self.closed:
            for packet, remote in self.closed.answer(header.destination_cid, time.monotonic()):
                self.send(packet, remote)
            return
        if connection is None:
            connection = self._new_connection(header, data, address)
        if connection is None:
            return
        self.run(connection, partial(connection.receive, data, address))
        if connection in self._half_open and quic.is_blank(connection.quic):
            self._counts.packets_ignored += 1
            connection.drop()

    def _new_connection(
        self, header: QuicHeader, data: bytes, address: NetworkAddress
    ) -> WebTransportConnection | None:
        """Return a connection for a first packet, or None after handling the packet otherwise."""
        if len(data) < _LEAST_INITIAL or header.version is None:
            self._counts.packets_ignored += 1
            return None
        configuration = self._configure()
        if header.version not in configuration.supported_versions:
            self._negotiate_version(header, address, configuration.supported_versions)
            return None
        if header.packet_type is not QuicPacketType.INITIAL:
            self._counts.packets_ignored += 1
            return None
        counted_as = self._addresses.client(address[0], ())
        if not self._has_room(counted_as):
            self._counts.connections_refused += 1
            return None
        ids: tuple[bytes, bytes | None] | None = header.destination_cid, None
        if header.token or len(self._half_open) >= self._bounds.retry_above:
            ids = self._validate_address(header, address)
        if ids is None:
            return None
        original, retried = ids
        library = QuicConnection(
            configuration=configuration,
            original_destination_connection_id=original,
            retry_source_connection_id=retried,
        )
        if self._bounds.low_latency:
            quic.stop_pacing(library)
        connection = WebTransportConnection(
            library, self, self._context, remote=address, counted_as=counted_as
        )
        self.connections[connection] = set()
        self._half_open.add(connection)
        self._counts.connections += 1
        self._of_address[counted_as] += 1
        for connection_id in (header.destination_cid, library.host_cid):
            self.route(connection_id, connection)
        return connection

    def _has_room(self, counted_as: str) -> bool:
        bounds = self._bounds
        return (
            self._accepting
            and len(self._half_open) < bounds.half_open
            and len(self.connections) < bounds.sessions + bounds.half_open
            and self._of_address[counted_as] < bounds.sessions_per_address + bounds.retry_above
        )

    def _validate_address(
        self, header: QuicHeader, address: NetworkAddress
    ) -> tuple[bytes, bytes | None] | None:
        """Return the ids of a new client's first packets, None until its address is validated."""
        now, destination = time.monotonic(), header.destination_cid
        if header.token:
            with contextlib.suppress(ValueError):
                original = self._retry.validate_token(
                    address=address, destination_cid=destination, token=header.token, now=now
                )
                return original, destination
            # A token of another server is ignored.
            if len(self._half_open) < self._bounds.retry_above:
                return destination, None
        self._counts.retries += 1
        chosen = os.urandom(_ID_BYTES)
        token = self._retry.create_token(
            address=address,
            original_destination_connection_id=destination,
            retry_source_connection_id=chosen,
            now=now,
        )
        self.send(
            encode_quic_retry(
                version=header.version or 0,
                source_cid=chosen,
                destination_cid=header.source_cid,
                original_destination_cid=destination,
                retry_token=token,
            ),
            address,
        )
        return None

    def _negotiate_version(
        self, header: QuicHeader, address: NetworkAddress, versions: list[int]
    ) -> None:
        self._counts.packets_ignored += 1
        # Two servers could answer each other endlessly.
        if header.packet_type is not QuicPacketType.VERSION_NEGOTIATION:
            answer = encode_quic_version_negotiation(
                source_cid=header.destination_cid,
                destination_cid=header.source_cid,
                supported_versions=versions,
            )
            self.send(answer, address)
