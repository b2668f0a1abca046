"""A WebTransport client that does nothing unless it is told to."""

import asyncio
import json
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import (
    DatagramReceived,
    DataReceived,
    HeadersReceived,
    WebTransportStreamDataReceived,
)
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import (
    ConnectionTerminated,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)

from mev.realtime.webtransport.framing import CapsuleReader, Closed
from mev.realtime.webtransport.handshake import PATH
from mev.wire.pb.stream_pb2 import Frame


class Peer(QuicConnectionProtocol):
    """One connection that buffers what it receives."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.quic = self._quic
        self.h3 = H3Connection(self._quic, enable_webtransport=True)
        self.answers: dict[int, dict[str, str]] = {}
        self.bodies: dict[int, bytes] = defaultdict(bytes)
        self.streams: dict[int, bytes] = defaultdict(bytes)
        self.whole: list[bytes] = []
        self.resets: dict[int, int] = {}
        self.stopped: dict[int, int] = {}
        self.datagrams: list[bytes] = []
        self.lines = bytearray()
        self.closed: Closed | None = None
        self.terminated: ConnectionTerminated | None = None
        self.session: int = -1
        self.control: int = -1
        self.control_ended = False
        self._capsules = CapsuleReader()
        self._news = asyncio.Event()

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamReset):
            self.resets[event.stream_id] = event.error_code
        elif isinstance(event, StopSendingReceived):
            self.stopped[event.stream_id] = event.error_code
        elif isinstance(event, ConnectionTerminated):
            self.terminated = event
        if isinstance(event, StreamDataReceived) and event.stream_id == self.control:
            # The library's client does not expect an answer on a stream that it opened.
            self.lines += event.data
            self.control_ended = event.end_stream
        else:
            for found in self.h3.handle_event(event):
                self._handle(found)
        self._news.set()

    def _handle(self, event: object) -> None:
        if isinstance(event, HeadersReceived):
            self.answers[event.stream_id] = {
                name.decode(): value.decode() for name, value in event.headers
            }
        elif isinstance(event, DataReceived):
            self.bodies[event.stream_id] += event.data
            if event.stream_id == self.session and self.closed is None:
                self.closed = self._capsules.feed(event.data)
        elif isinstance(event, DatagramReceived):
            self.datagrams.append(event.data)
        elif isinstance(event, WebTransportStreamDataReceived):
            self.streams[event.stream_id] += event.data
            if event.stream_ended:
                self.whole.append(self.streams.pop(event.stream_id))

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait for `condition`, which changes with what is received."""
        while not condition():
            self._news.clear()
            await self._news.wait()

    def request(
        self,
        path: str = PATH,
        *,
        method: str = "CONNECT",
        authority: str = "localhost:4433",
        **fields: str,
    ) -> int:
        """Send a request; return its stream."""
        stream_id = self.quic.get_next_available_stream_id()
        pseudo = {":method": method, ":scheme": "https", ":authority": authority, ":path": path}
        if method == "CONNECT":
            pseudo[":protocol"] = "webtransport"
        fields = {name.replace("_", "-").lower(): value for name, value in fields.items()}
        self.h3.send_headers(
            stream_id,
            [(name.encode(), value.encode()) for name, value in {**pseudo, **fields}.items()],
        )
        self.transmit()
        return stream_id

    async def answer(self, stream_id: int) -> dict[str, str]:
        """Return the headers that answer a request."""
        await self.until(lambda: stream_id in self.answers or self.terminated)
        return self.answers[stream_id]

    async def open(self, path: str = PATH, **fields: str) -> dict[str, str]:
        """Open the session; return the headers of the answer."""
        self.session = self.request(path, **fields)
        return await self.answer(self.session)

    def send_raw(self, data: bytes) -> None:
        """Send bytes on the control stream."""
        if self.control < 0:
            self.control = self.h3.create_webtransport_stream(self.session)
        self.quic.send_stream_data(self.control, data)
        self.transmit()

    def say(self, **message: object) -> None:
        """Send a control message."""
        self.send_raw(json.dumps(message).encode() + b"\n")

    async def hear(self) -> dict[str, Any]:
        """Return the next control message."""
        await self.until(lambda: b"\n" in self.lines or self.terminated)
        line, _, self.lines = self.lines.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    async def ask(self, **message: object) -> dict[str, Any]:
        """Send a control message and return the next one."""
        self.say(**message)
        return await self.hear()

    async def frame(self) -> Frame:
        """Return the next whole frame."""
        await self.until(lambda: self.whole or self.terminated)
        return Frame.FromString(self.whole.pop(0))

    def end(self, capsule: bytes = b"") -> None:
        """End the session."""
        self.h3.send_data(self.session, capsule, end_stream=True)
        self.transmit()

    def open_uni(self, data: bytes) -> int:
        """Open a unidirectional stream of the session."""
        stream_id = self.h3.create_webtransport_stream(self.session, is_unidirectional=True)
        self.quic.send_stream_data(stream_id, data)
        self.transmit()
        return stream_id

    def send_datagram(self, data: bytes) -> None:
        """Send a datagram of the session."""
        self.quic.send_datagram_frame(encode_uint_var(self.session // 4) + data)
        self.transmit()


@asynccontextmanager
async def peer(port: int, *, host: str = "127.0.0.1", **options: Any) -> AsyncIterator[Peer]:
    """Connect."""
    configuration = QuicConfiguration(
        **{
            "is_client": True,
            "alpn_protocols": ["h3"],
            "max_datagram_frame_size": 65_535,
            "verify_mode": ssl.CERT_NONE,
            **options,
        }
    )
    async with connect(host, port, configuration=configuration, create_protocol=Peer) as connection:
        assert isinstance(connection, Peer)
        yield connection
