"""WebSocket clients in a separate process that count or time frames, and the hub they use."""

import asyncio
import base64
import math
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol, cast

import orjson
from prometheus_client import CollectorRegistry

from bench.children import Pipe
from bench.servers import Loop
from mev.auth.credentials import Credential
from mev.auth.model import MASTER, Principal
from mev.host.routes import health_route
from mev.realtime.access import PrincipalQuota, StreamAccess
from mev.realtime.batch import Encoding
from mev.realtime.hub import Hub
from mev.realtime.limits import HubLimits
from mev.realtime.websocket.connection import PATH, websocket_class
from mev.realtime.websocket.handshake import SUBPROTOCOL
from mev.wire.pb.events_pb2 import Tick
from mev.wire.pb.stream_pb2 import Frame
from mev.wire.registry import EVENT_TYPES

GREETING = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
"""What a baseline answers a client."""
_HANDSHAKE = "\r\n".join(
    (
        f"GET {PATH} HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}",
        f"Sec-WebSocket-Protocol: {SUBPROTOCOL}",
        "X-API-Key: benchmark",
        "",
        "",
    )
).encode()
_TEXT_HANDSHAKE = _HANDSHAKE.replace(f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n".encode(), b"")
_BINARY = 0x82
_READ_BYTES = 1 << 18
_LITTLE_BYTES = 1 << 13


class Doorkeeper:
    """Lets everyone in: the rows are about what comes after."""

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


@dataclass(frozen=True, slots=True)
class Served:
    """A hub behind a port, and the transports of its connections."""

    hub: Hub
    port: int
    registry: CollectorRegistry
    transports: list[asyncio.Transport] = field(default_factory=list)

    def sent(self) -> tuple[int, int]:
        """Return how many frames and events were handed to connections that read frames."""
        labels = {"transport": "websocket", "encoding": "protobuf"}
        frames = self.registry.get_sample_value("mev_realtime_frames_sent_total", labels)
        return int(frames or 0), sum(
            client.sent
            for client in self.hub.clients.values()
            if client.encoding is Encoding.PROTOBUF
        )


@contextmanager
def serve_hub(loop: Loop, batch_max_size: int) -> Iterator[Served]:
    """Serve a hub as the running system does."""
    registry = CollectorRegistry()
    # Nothing but events: these clients answer no pings, and count frames.
    hub = Hub(
        EVENT_TYPES,
        HubLimits(batch_max_size=batch_max_size, ping_interval_s=math.inf, position_s=math.inf),
        registry,
    )
    made = websocket_class(
        hub, StreamAccess(hub, Doorkeeper(), quota=PrincipalQuota(connections=10_000))
    )
    transports: list[asyncio.Transport] = []

    class Noted(made):  # type: ignore[valid-type, misc]
        """A connection whose transport can be seen."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            """Take the transport."""
            transports.append(cast("asyncio.Transport", transport))
            super().connection_made(transport)

    with loop.serve(health_route, Noted) as port:
        yield Served(hub, port, registry, transports)


def subscribe(event_type: str, conditions: Sequence[str] = ()) -> bytes:
    """Return a client's `subscribe` message."""
    return orjson.dumps(
        {"op": "subscribe", "id": "b", "topics": [event_type], "filter": conditions}
    )


def connect(port: int, message: bytes | None, *, text: bool = False) -> socket.socket:
    """Open a connection, and say `message` if there is one. It reads frames, or text."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(_TEXT_HANDSHAKE if text else _HANDSHAKE)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += _exactly(connection, 1)
    if not answer.startswith(b"HTTP/1.1 101"):
        raise RuntimeError(f"answered {answer[:200]!r}")
    if message is not None:
        size = len(message)
        length_field = (
            bytes((0x80 | size,)) if size < 126 else bytes((0x80 | 126,)) + size.to_bytes(2)
        )
        connection.sendall(b"\x81" + length_field + bytes(4) + message)
        _, length = _exactly(connection, 2)
        confirmed = _exactly(
            connection, int.from_bytes(_exactly(connection, 2)) if length == 126 else length
        )
        if b'"subscribed"' not in confirmed:
            raise RuntimeError(f"answered {confirmed[:200]!r}")
    return connection


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        received = connection.recv(size - len(data))
        if not received:
            raise RuntimeError("the server closed a connection")
        data += received
    return data


class Receiver(Protocol):
    """Receiver of one connection's data."""

    def take(self, data: memoryview) -> int:
        """Return how many frames `data` completes."""


def read(
    pipe: Pipe,
    port: int,
    messages: Sequence[bytes | None],
    receiver: Callable[[list[int]], Receiver],
) -> None:
    """Connect once for each of `messages`, and report each requested number of frames.

    The reply holds the notes of the receivers.
    """
    noted: list[int] = []
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for message in messages:
            connection = stack.enter_context(connect(port, message))
            selector.register(connection, selectors.EVENT_READ, receiver(noted))
        selector.register(pipe, selectors.EVENT_READ)
        pipe.send("connected")
        try:
            while True:
                _read_round(selector, pipe)
                pipe.send(noted)
                noted.clear()
        except EOFError:
            return


def misbehave(pipe: Pipe, port: int, message: bytes) -> None:
    """Misbehave until the parent exits: never read, read slowly, and reconnect every second."""
    with connect(port, message, text=True), connect(port, message, text=True) as slow:
        pipe.send("connected")
        while True:
            with connect(port, message, text=True):
                slow.recv(_LITTLE_BYTES)
                if pipe.poll(1.0):
                    return


def _read_round(selector: selectors.BaseSelector, pipe: Pipe) -> None:
    buffer = memoryview(bytearray(_READ_BYTES))
    frames, expected = 0, -1
    while frames != expected:
        for key, _ in selector.select():
            if key.fileobj is pipe:
                expected = pipe.recv()
                continue
            size = cast("socket.socket", key.fileobj).recv_into(buffer)
            if not size:
                raise RuntimeError("the server closed a connection")
            frames += key.data.take(buffer[:size])


class GreetingProtocol(asyncio.Protocol):
    """A connection that greets, never listens, and adds its transport to `greeted`."""

    def __init__(self, greeted: list[asyncio.Transport]) -> None:
        self._greeted = greeted

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        transport = cast("asyncio.Transport", transport)
        transport.write(GREETING)
        self._greeted.append(transport)


class FrameCounter:
    """Counts binary frames by their headers."""

    def __init__(self, noted: list[int]) -> None:
        del noted
        self._header = bytearray()
        self._missing = 0

    def take(self, data: memoryview) -> int:
        """Return how many frames `data` completes."""
        frames, position = 0, 0
        while position < len(data):
            if not self._missing:
                wanted = _header_bytes(self._header) - len(self._header)
                self._header += data[position : position + wanted]
                position += wanted
                self._begin()
                continue
            taken = min(self._missing, len(data) - position)
            self._missing -= taken
            position += taken
            frames += not self._missing
        return frames

    def _begin(self) -> None:
        if len(self._header) == _header_bytes(self._header):
            self._missing = _payload_bytes(self._header)
            self._header.clear()


class Clocked:
    """Receiver that records the latency in nanoseconds of every `_EACH`-th tick in each frame."""

    _EACH = 64  # more decoding would slow the reader and inflate the latency

    def __init__(self, noted: list[int]) -> None:
        self._noted = noted
        self._data = bytearray()

    def take(self, data: memoryview) -> int:
        """Return how many frames `data` completes."""
        now_ns = time.monotonic_ns()
        self._data += data
        frames = 0
        while len(self._data) >= (start := _header_bytes(self._data)):
            end = start + _payload_bytes(self._data[:start])
            if len(self._data) < end:
                break
            frame = Frame.FromString(bytes(self._data[start:end]))
            for part in frame.slices:
                self._noted += [
                    now_ns - Tick.FromString(value).timestamp_ns
                    for value in part.events[:: self._EACH]
                ]
            del self._data[:end]
            frames += 1
        return frames


def _header_bytes(start: bytearray) -> int:
    return {126: 4, 127: 10}.get(start[1], 2) if len(start) > 1 else 2


def _payload_bytes(header: bytearray) -> int:
    if header[0] != _BINARY:
        raise RuntimeError(f"a frame begins with {bytes(header)!r}")
    return int.from_bytes(header[2:]) if len(header) > 2 else header[1]
