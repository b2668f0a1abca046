"""Frames of 256 events to WebSocket clients in another process, against a server that only writes prepared bytes.

Both servers live on one event loop, are driven by the same pump, and write to the same reader. The pump waits for whatever client is
behind, so that every frame is delivered and counted.
"""

import asyncio
import base64
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

from websockets.asyncio import server

from bench import events
from bench.children import Pipe, child
from bench.harness import Clock, Row, Setting, Side, Sides
from bench.servers import Loop, event_loop
from mev.auth.credentials import Credential
from mev.auth.model import MASTER, Principal
from mev.bus.batch import Batch
from mev.host.lane import health_lane
from mev.realtime import websocket
from mev.realtime.guard import Guard
from mev.realtime.handshake import SUBPROTOCOL
from mev.realtime.hub import Hub
from mev.realtime.limits import Limits
from mev.realtime.server import PATH, websocket_class
from mev.wire.frames import Run, encode_frame
from mev.wire.registry import EVENT_TYPES

_CLIENTS = (1, 10, 100)
_EVENTS = 256
_FRAMES = 12_000  # of all clients together, in one round
_BEHIND_BYTES = 512 << 10  # less than the hub's soft limit, so nothing is queued or dropped
_READ_BYTES = 1 << 18
_TIMEOUT_S = 60
_HEADER_BYTES = 10  # of a frame of 64 KiB or more, unmasked
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
_SUBSCRIBE = b'{"op":"subscribe","id":"b","topics":["opportunity"]}'


@contextmanager
def _against_bytes(clients: int, _: Setting) -> Iterator[Sides]:
    with event_loop() as loop, _bytes(loop, clients) as baseline, _hub(loop, clients) as ours:
        yield Sides(baseline, ours)


@contextmanager
def _against_library(clients: int, _: Setting) -> Iterator[Sides]:
    with event_loop() as loop, _library(loop, clients) as baseline, _hub(loop, clients) as ours:
        yield Sides(baseline, ours)


class _Doorkeeper:
    """Lets everyone in: the row is about frames."""

    def known(self, credential: Credential) -> Principal:
        """Answer at once."""
        del credential
        return MASTER

    async def identify(self, credential: Credential, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> Principal:
        """Answer."""
        del credential, peer, headers
        return MASTER

    async def renew(self, principal: Principal) -> Principal:
        """Leave it as it is."""
        return principal

    def count_stranger(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Let strangers be."""


@contextmanager
def _hub(loop: Loop, clients: int) -> Iterator[Side]:
    """Serve a hub as the running system does, with clients of all opportunities."""
    hub = Hub(EVENT_TYPES, Limits(batch_max_size=_EVENTS))
    made = websocket_class(hub, Guard(hub, _Doorkeeper()))
    transports: list[asyncio.Transport] = []

    class Noted(made):  # type: ignore[valid-type, misc]
        """A connection whose transport the pump can see."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            """Take the transport."""
            transports.append(cast("asyncio.Transport", transport))
            super().connection_made(transport)

    values = _values()
    batch = Batch(events.EVENT.topic, 0, list(range(_EVENTS)), [b"key"] * _EVENTS, values)

    def push() -> None:
        hub.positions.clear()  # the same offsets again are no loss
        hub.push(batch)

    with loop.serve(health_lane, Noted) as port, child(_reader, port, clients, subscribe=True) as pipe:
        yield _side(loop, pipe, transports, clients, push)


@contextmanager
def _bytes(loop: Loop, clients: int) -> Iterator[Side]:
    """Serve one prepared frame with nothing but `transport.write`."""
    frame, transports = _frame(), list[asyncio.Transport]()

    class Plain(asyncio.Protocol):
        """A connection that greets and never listens."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            """Greet."""
            self._transport = cast("asyncio.Transport", transport)
            self._transport.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
            transports.append(self._transport)

    def push() -> None:
        for transport in transports:
            transport.write(frame)

    with loop.listen(Plain) as port, child(_reader, port, clients, subscribe=False) as pipe:
        yield _side(loop, pipe, transports, clients, push)


@contextmanager
def _library(loop: Loop, clients: int) -> Iterator[Side]:
    """Serve one prepared payload with the `websockets` library's `broadcast`."""
    payload, connections = _payload(), list[server.ServerConnection]()

    async def handler(connection: server.ServerConnection) -> None:
        connections.append(connection)
        await connection.wait_closed()

    async def start() -> server.Server:
        return await server.serve(handler, "127.0.0.1", 0, compression=None, ping_interval=None)

    async def stop() -> None:
        running.close()
        await running.wait_closed()

    running = loop.run(start())
    try:
        with child(_reader, running.sockets[0].getsockname()[1], clients, subscribe=False) as pipe:
            transports = [connection.transport for connection in connections]
            yield _side(loop, pipe, transports, clients, lambda: server.broadcast(connections, payload))
    finally:
        loop.run(stop())


def _values() -> list[bytes]:
    return [event.SerializeToString() for event in events.opportunities(_EVENTS)]


def _payload() -> bytes:
    return encode_frame([Run(events.EVENT.topic, 0, range(_EVENTS), _values())], time.time_ns())


def _frame() -> bytes:
    payload = _payload()
    return websocket.header(websocket.Opcode.BINARY, len(payload)) + payload


def _side(loop: Loop, pipe: Pipe, transports: list[asyncio.Transport], clients: int, push: Callable[[], None]) -> Side:
    pipe.recv()  # every client is there
    frames = _FRAMES // clients

    def side() -> float:
        pipe.send(frames * clients)
        pipe.recv()  # the reader is about to read
        started = time.perf_counter()
        loop.run(_pump(push, transports, frames))
        if not pipe.poll(_TIMEOUT_S):
            raise RuntimeError("frames were lost on the way")
        pipe.recv()
        return frames * clients * _EVENTS / (time.perf_counter() - started)

    return side


async def _pump(push: Callable[[], None], transports: list[asyncio.Transport], frames: int) -> None:
    for _ in range(frames):
        push()
        await asyncio.sleep(0)
        while any(transport.get_write_buffer_size() > _BEHIND_BYTES for transport in transports):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)


def _reader(pipe: Pipe, port: int, clients: int, *, subscribe: bool) -> None:
    """Connect `clients` times; then count as many frames as the parent asks for, and say when."""
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for _ in range(clients):
            connection = stack.enter_context(_connect(port, subscribe=subscribe))
            selector.register(connection, selectors.EVENT_READ, _Counter())
        pipe.send("connected")
        while True:
            try:
                frames = pipe.recv()
            except EOFError:
                return
            pipe.send("ready")
            _count(selector, frames)
            pipe.send("done")


def _connect(port: int, *, subscribe: bool) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(_HANDSHAKE)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += connection.recv(1)
    if not answer.startswith(b"HTTP/1.1 101"):
        raise RuntimeError(f"answered {answer[:200]!r}")
    if subscribe:
        connection.sendall(b"\x81" + bytes((0x80 | len(_SUBSCRIBE),)) + bytes(4) + _SUBSCRIBE)
        _, size = connection.recv(2)
        connection.recv(size)
    return connection


def _count(selector: selectors.BaseSelector, frames: int) -> None:
    buffer = memoryview(bytearray(_READ_BYTES))
    while frames > 0:
        for key, _ in selector.select():
            connection = cast("socket.socket", key.fileobj)
            size = connection.recv_into(buffer)
            if not size:
                raise RuntimeError("the server closed a connection")
            frames -= key.data.take(buffer[:size])


class _Counter:
    """Counts the whole frames of one connection by their headers."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._missing = 0

    def take(self, data: memoryview) -> int:
        """Return how many frames `data` completes."""
        frames, position = 0, 0
        while position < len(data):
            if not self._missing:
                wanted = _HEADER_BYTES - len(self._header)
                self._header += data[position : position + wanted]
                position += wanted
                if len(self._header) == _HEADER_BYTES:
                    self._missing = int.from_bytes(self._header[2:])
                    self._header.clear()
                continue
            taken = min(self._missing, len(data) - position)
            self._missing -= taken
            position += taken
            frames += not self._missing
        return frames


def _row(name: str, clients: int, baseline: str, opened: Callable[[int, Setting], Any], rate: float | None = None) -> Row:
    return Row(
        name=name,
        unit="delivered/s",
        ours=f"events through the hub to {clients} WebSocket client{'s' if clients > 1 else ''}, 256 a frame",
        baseline=baseline,
        clock=Clock.WALL,
        open=partial(opened, clients),
        expected_rate=rate,
    )


ROWS = (
    *(
        _row(f"websocket_{n}", n, "transport.write of one prepared frame, uvloop", _against_bytes, 1e6 if n == 100 else None)
        for n in _CLIENTS
    ),
    _row("websocket_100_library", 100, "broadcast() of one prepared payload by the websockets library, uvloop", _against_library),
)
