"""Frames of 256 events, and datagrams, to a WebTransport client, against bare aioquic.

The baseline sends prepared bytes. Both servers run on one event loop, use the same certificate and
packet size, and are driven by the same pump, which waits for their buffers. A rate is bytes per CPU
time of this process; the client, in another process, uses the same library and is as busy.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer, serve
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated, QuicEvent, StreamDataReceived

from bench import events
from bench.children import Pipe, child
from bench.harness import Clock, Row, RowFigures, RowInput, Side, Sides
from bench.servers import Loop, event_loop
from mev.auth.credentials import Credential
from mev.auth.model import MASTER, Principal
from mev.bus.batch import PartitionBatch
from mev.realtime.access import StreamAccess
from mev.realtime.client import Client
from mev.realtime.hub import Hub
from mev.realtime.limits import HubLimits, WebTransportLimits
from mev.realtime.webtransport import certificates, handshake, quic
from mev.realtime.webtransport.certificates import Certificate
from mev.realtime.webtransport.server import WebTransportServer
from mev.realtime.webtransport.session import WebTransportSession
from mev.wire.frames import Run, encode_frame
from mev.wire.registry import EVENT_TYPES

_FRAME_EVENTS, _DATAGRAM_EVENTS = 256, 2
_FRAMES = 200  # in one round
_DATAGRAMS = 12_000
_BEHIND_BYTES = 512 << 10  # less than the hub's soft limit, so nothing waits there
_BEHIND_DATAGRAMS = 32
_PAUSE_S = 0.0005
_CLIENT_BYTES = 1 << 30
_TIMEOUT_S = 60

Send = Callable[[], None]
Held = Callable[[], int]


@contextmanager
def _streams(_: RowInput) -> Iterator[Sides]:
    payload = _payload(_FRAME_EVENTS)
    with (
        event_loop() as loop,
        _bare(loop) as (bare, one),
        _server(loop, _FRAME_EVENTS, "stream") as (link, push, two),
    ):
        bounds = (_FRAMES, len(payload), _BEHIND_BYTES)
        yield _sides(
            loop,
            (lambda: bare.send_frame(payload), bare.backlog, one),
            (push, link.backlog, two),
            *bounds,
            whole=True,
        )


@contextmanager
def _datagrams(_: RowInput) -> Iterator[Sides]:
    payload = _payload(_DATAGRAM_EVENTS)
    with (
        event_loop() as loop,
        _bare(loop) as (bare, one),
        _server(loop, _DATAGRAM_EVENTS, "datagram") as (link, push, two),
    ):

        def waiting() -> int:
            return quic.datagrams_waiting(link.quic)

        bounds = (_DATAGRAMS, len(payload), _BEHIND_DATAGRAMS)
        yield _sides(
            loop,
            (lambda: bare.send_datagram(payload), bare.waiting, one),
            (push, waiting, two),
            *bounds,
            whole=False,
        )


def _sides(
    loop: Loop,
    bare: tuple[Send, Held, Pipe],
    ours: tuple[Send, Held, Pipe],
    count: int,
    size: int,
    behind: int,
    *,
    whole: bool,
) -> Sides:
    rates: dict[str, list[float]] = {"bare": [], "ours": []}

    def side(name: str, send: Send, held: Held, pipe: Pipe) -> Side:
        def run() -> float:
            pipe.send(count if whole else 0)
            pipe.recv()
            started, busy = time.perf_counter(), time.process_time()
            loop.run(_pump(send, held, count, behind))
            if whole and not pipe.poll(_TIMEOUT_S):
                raise RuntimeError("frames were lost on the way")
            if whole:
                pipe.recv()
            rates[name].append(count * size / (time.perf_counter() - started) / 1e6)
            return count * size / (time.process_time() - busy) / 1e6

        return run

    def notes(_: RowFigures) -> list[str]:
        middle = {name: sorted(found)[len(found) // 2] for name, found in rates.items()}
        return [f"by the clock {middle['ours']:.1f} MB/s, bare {middle['bare']:.1f} MB/s"]

    return Sides(side("bare", *bare), side("ours", *ours), notes)


async def _pump(send: Send, held: Held, count: int, behind: int) -> None:
    for _ in range(count):
        send()
        await asyncio.sleep(0)
        while held() > behind:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(_PAUSE_S)
    while held():  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(_PAUSE_S)


class _Bare(QuicConnectionProtocol):
    """Accepts any session, and sends prepared bytes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._h3: H3Connection | None = None
        self._session = -1
        self._streams: list[quic.SendStream] = []

    def quic_event_received(self, event: QuicEvent) -> None:
        """Greet."""
        if isinstance(event, ProtocolNegotiated):
            self._h3 = H3Connection(self._quic, enable_webtransport=True)
        elif self._h3 is not None and isinstance(event, StreamDataReceived):
            for found in self._h3.handle_event(event):
                if isinstance(found, HeadersReceived):
                    self._session = found.stream_id
                    self._h3.send_headers(self._session, handshake.ACCEPTED)

    def send_frame(self, payload: bytes) -> None:
        """Send a frame on a stream of its own."""
        if self._h3 is not None:
            stream_id = self._h3.create_webtransport_stream(self._session, is_unidirectional=True)
            self._quic.send_stream_data(stream_id, payload, end_stream=True)
            self._streams.append(quic.SendStream(self._quic, stream_id))
            self.transmit()

    def backlog(self) -> int:
        """Return how many bytes are not acknowledged."""
        self._streams = [stream for stream in self._streams if not stream.is_finished]
        return sum(stream.unacknowledged for stream in self._streams)

    def send_datagram(self, payload: bytes) -> None:
        """Send a datagram."""
        if self._h3 is not None:
            self._h3.send_datagram(self._session, payload)
            self.transmit()

    def waiting(self) -> int:
        """Return how many datagrams have not left."""
        return quic.datagrams_waiting(self._quic)


@contextmanager
def _bare(loop: Loop) -> Iterator[tuple[_Bare, Pipe]]:
    made: list[_Bare] = []

    def create(*args: Any, **options: Any) -> _Bare:
        made.append(_Bare(*args, **options))
        return made[-1]

    async def start() -> tuple[QuicServer, int]:
        shown, bounds = _certificate(), WebTransportLimits()
        configuration = quic.configuration(
            idle_timeout_s=bounds.idle_timeout_s, max_datagram_bytes=bounds.max_datagram_bytes
        )
        configuration.certificate, configuration.private_key = shown.chain[0], shown.key
        server = await serve("127.0.0.1", 0, configuration=configuration, create_protocol=create)
        transport = server._transport  # noqa: SLF001 - the library does not say its port
        if transport is None:
            raise RuntimeError("the server has no socket")
        return server, transport.get_extra_info("sockname")[1]

    async def stop() -> None:
        server.close()

    server, port = loop.run(start())
    try:
        with child(_reader, port, "") as pipe:
            pipe.recv()
            yield made[0], pipe
    finally:
        loop.run(stop())


@contextmanager
def _server(loop: Loop, count: int, delivery: str) -> Iterator[tuple["_Link", Send, Pipe]]:
    """Serve a hub as the running system does, with a client of all opportunities."""

    async def start() -> tuple[Hub, WebTransportServer]:
        hub = Hub(EVENT_TYPES, HubLimits(batch_max_size=count))
        server = WebTransportServer(hub, StreamAccess(hub, _Doorkeeper()), _Fixed())
        await server.start("127.0.0.1", 0)
        return hub, server

    async def stop() -> None:
        await server.close()
        hub.close()

    hub, server = loop.run(start())
    values, offsets = _values(count), list(range(count))
    try:
        with child(_reader, server.port, delivery) as pipe:
            pipe.recv()
            (client,) = hub.clients.values()
            yield (
                _Link(client),
                lambda: hub.push(
                    PartitionBatch(events.EVENT.topic, 0, offsets, [b""] * count, values)
                ),
                pipe,
            )
    finally:
        loop.run(stop())


class _Link:
    """Interface that the pump needs of a session."""

    def __init__(self, client: Client) -> None:
        if not isinstance(client.link, WebTransportSession):
            raise TypeError("this is no WebTransport")
        self.quic = client.link.outbox.quic
        self.backlog = client.link.backlog


class _Fixed:
    """A certificate store with one permanent certificate."""

    def reload(self) -> Certificate:
        """Return it."""
        return _certificate()


class _Doorkeeper:
    """Lets everyone in: the row is about frames."""

    def known(self, credential: Credential) -> Principal:
        """Answer at once."""
        del credential
        return MASTER

    async def identify(
        self, credential: Credential, peer: str, headers: Iterable[tuple[bytes, bytes]]
    ) -> Principal:
        """Answer."""
        del credential, peer, headers
        return MASTER

    async def renew(self, principal: Principal) -> Principal:
        """Leave it as it is."""
        return principal

    def count_stranger(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Let strangers be."""


def _certificate() -> Certificate:
    return certificates.self_signed(datetime.now(UTC))


def _values(count: int) -> list[bytes]:
    return [event.SerializeToString() for event in events.opportunities(count)]


def _payload(count: int) -> bytes:
    return encode_frame([Run(events.EVENT.topic, 0, range(count), _values(count))], time.time_ns())


def _reader(pipe: Pipe, port: int, delivery: str) -> None:
    """Open a session, subscribe if `delivery` is set, and report requested frame counts."""
    asyncio.run(_read(pipe, port, delivery))


async def _read(pipe: Pipe, port: int, delivery: str) -> None:
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=["h3"],
        verify_mode=ssl.CERT_NONE,
        max_datagram_frame_size=65_535,
        max_data=_CLIENT_BYTES,
        max_stream_data=_CLIENT_BYTES,
    )
    async with connect(
        "127.0.0.1", port, configuration=configuration, create_protocol=_Counter
    ) as connection:
        if not isinstance(connection, _Counter):
            raise TypeError("this is no counter")
        await connection.open(delivery)
        pipe.send("connected")
        while True:
            try:
                frames = await asyncio.to_thread(pipe.recv)
            except EOFError:
                return
            connection.missing = frames
            connection.done.clear()
            pipe.send("ready")
            if frames:
                await connection.done.wait()
                pipe.send("done")


class _Counter(QuicConnectionProtocol):
    """Counts streams that are whole; does nothing else with what it gets."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._h3 = H3Connection(self._quic, enable_webtransport=True)
        self._control = -1
        self._answered = asyncio.Event()
        self.missing = 0
        self.done = asyncio.Event()

    async def open(self, delivery: str) -> None:
        """Open the session, and subscribe."""
        session = self._quic.get_next_available_stream_id()
        fields = {
            ":method": "CONNECT",
            ":protocol": "webtransport",
            ":scheme": "https",
            ":authority": "h",
            ":path": handshake.PATH,
        }
        fields["x-api-key"] = "benchmark"
        self._h3.send_headers(
            session, [(name.encode(), value.encode()) for name, value in fields.items()]
        )
        self.transmit()
        await self._answered.wait()
        if delivery:
            self._answered.clear()
            self._control = self._h3.create_webtransport_stream(session)
            self._quic.send_stream_data(
                self._control,
                b'{"op":"subscribe","id":"b","topics":["opportunity"],"delivery":"%b"}\n'
                % delivery.encode(),
            )
            self.transmit()
            await self._answered.wait()

    def quic_event_received(self, event: QuicEvent) -> None:
        """Count."""
        if not isinstance(event, StreamDataReceived):
            return
        if event.stream_id == self._control:
            self._answered.set()
        elif event.stream_id % 4 == 3:
            self.missing -= event.end_stream
            if event.end_stream and not self.missing:
                self.done.set()
        elif any(isinstance(found, HeadersReceived) for found in self._h3.handle_event(event)):
            self._answered.set()


def _row(name: str, ours: str, baseline: str, opened: Callable[[RowInput], Any]) -> Row:
    return Row(
        name=name,
        unit="MB/s",
        ours=ours,
        baseline=baseline,
        clock=Clock.CPU,
        open=opened,
        expected_ratio=0.8,
    )


ROWS = (
    _row(
        "webtransport_streams",
        "frames of 256 events, a stream each",
        "prepared frames by bare aioquic",
        _streams,
    ),
    _row(
        "webtransport_datagrams",
        "datagrams of 2 events",
        "prepared datagrams by bare aioquic",
        _datagrams,
    ),
)
