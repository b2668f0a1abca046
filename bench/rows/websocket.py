"""Frames of 256 events to WebSocket clients, against a server that writes prepared bytes.

Both servers run on one event loop, are driven by the same pump, and write to the same reader in
another process. The pump waits for slow clients, so that every frame is delivered and counted.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from websockets.asyncio import server

from bench import events, sockets
from bench.children import Pipe, child
from bench.harness import Clock, Row, RowInput, Side, Sides
from bench.servers import Loop, event_loop
from mev.bus.batch import PartitionBatch
from mev.realtime.websocket import protocol
from mev.wire.frames import Run, encode_frame

_CLIENTS = (1, 10, 100, 1000)
_EVENTS = 256
_FRAMES = 24_000  # of all clients together, in one round
_BEHIND_BYTES = 512 << 10  # less than the hub's soft limit, so nothing is queued or dropped
_TIMEOUT_S = 60
_PAUSE_S = 0.001

Sent = Callable[[], tuple[int, int]]
"""How many frames and events have been handed to connections."""


@contextmanager
def _against_bytes(clients: int, filters: int, _: RowInput) -> Iterator[Sides]:
    with (
        event_loop() as loop,
        _bytes(loop, clients) as baseline,
        _hub(loop, clients, filters) as ours,
    ):
        yield Sides(baseline, ours)


@contextmanager
def _against_library(clients: int, filters: int, _: RowInput) -> Iterator[Sides]:
    with (
        event_loop() as loop,
        _library(loop, clients) as baseline,
        _hub(loop, clients, filters) as ours,
    ):
        yield Sides(baseline, ours)


@contextmanager
def _hub(loop: Loop, clients: int, filters: int) -> Iterator[Side]:
    """Serve a hub to clients of all opportunities, or of half of them by distinct filters."""
    count = 2 * _EVENTS if filters else _EVENTS
    values = [event.SerializeToString() for event in events.opportunities(count)]
    batch = PartitionBatch(events.EVENT.topic, 0, list(range(count)), [b"key"] * count, values)
    conditions = _conditions(filters)
    messages = [
        sockets.subscribe(events.EVENT.name, conditions[number % filters :][:1] if filters else [])
        for number in range(clients)
    ]
    with sockets.serve_hub(loop, _EVENTS) as served:

        def push() -> None:
            served.hub.positions.clear()  # the same offsets again are no loss
            served.hub.push(batch)

        with child(sockets.read, served.port, messages, sockets.FrameCounter) as pipe:
            pipe.recv()
            yield _side(loop, pipe, served.transports, push, served.sent, clients=clients)


def _conditions(different: int) -> list[str]:
    """Return that many different conditions that match half of the events."""
    profits = sorted(event.expected_profit_lamports for event in events.opportunities(2 * _EVENTS))
    below, above = profits[_EVENTS - 1 : _EVENTS + 1]
    if above - below < different:
        raise RuntimeError(
            f"there is no room for {different} conditions between {below} and {above}"
        )
    return [f"expected_profit_lamports >= {above - number}" for number in range(different)]


@contextmanager
def _bytes(loop: Loop, clients: int) -> Iterator[Side]:
    """Serve one prepared frame with nothing but `transport.write`."""
    frame, transports = _frame(), list[asyncio.Transport]()

    def push() -> None:
        for transport in transports:
            transport.write(frame)

    with (
        loop.listen(partial(sockets.GreetingProtocol, transports)) as port,
        _reader(port, clients) as pipe,
    ):
        yield _counted(loop, pipe, transports, push)


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
        with _reader(running.sockets[0].getsockname()[1], clients) as pipe:
            transports = [connection.transport for connection in connections]
            yield _counted(loop, pipe, transports, lambda: server.broadcast(connections, payload))
    finally:
        loop.run(stop())


@contextmanager
def _reader(port: int, clients: int) -> Iterator[Pipe]:
    """Connect clients that say nothing."""
    with child(sockets.read, port, [None] * clients, sockets.FrameCounter) as pipe:
        pipe.recv()
        yield pipe


def _payload() -> bytes:
    values = [event.SerializeToString() for event in events.opportunities(_EVENTS)]
    return encode_frame([Run(events.EVENT.topic, 0, range(_EVENTS), values)], time.time_ns())


def _frame() -> bytes:
    payload = _payload()
    return protocol.header(protocol.Opcode.BINARY, len(payload)) + payload


def _counted(
    loop: Loop, pipe: Pipe, transports: list[asyncio.Transport], push: Callable[[], None]
) -> Side:
    """Give the side of a server that writes a frame to everyone at each push."""
    frames = 0

    def counting() -> None:
        nonlocal frames
        push()
        frames += len(transports)

    return _side(
        loop,
        pipe,
        transports,
        counting,
        lambda: (frames, frames * _EVENTS),
        clients=len(transports),
    )


def _side(
    loop: Loop,
    pipe: Pipe,
    transports: list[asyncio.Transport],
    push: Callable[[], None],
    sent: Sent,
    *,
    clients: int,
) -> Side:
    pushes = _FRAMES // clients
    events_each = pushes * clients * _EVENTS

    def side() -> float:
        frames_before, events_before = sent()
        started = time.perf_counter()
        loop.run(_pump(push, transports, pushes, lambda: sent()[1] - events_before >= events_each))
        pipe.send(sent()[0] - frames_before)
        if not pipe.poll(_TIMEOUT_S):
            raise RuntimeError("frames were lost on the way")
        pipe.recv()
        return events_each / (time.perf_counter() - started)

    return side


async def _pump(
    push: Callable[[], None],
    transports: list[asyncio.Transport],
    pushes: int,
    sent: Callable[[], bool],
) -> None:
    for _ in range(pushes):
        push()
        await asyncio.sleep(0)
        while any(  # noqa: ASYNC110 - nothing tells
            transport.get_write_buffer_size() > _BEHIND_BYTES for transport in transports
        ):
            await asyncio.sleep(0)
    async with asyncio.timeout(_TIMEOUT_S):
        while not sent():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(_PAUSE_S)


def _row(
    name: str, clients: int, *, filters: int = 0, library: bool = False, rate: float | None = None
) -> Row:
    what = (
        ("", ", half of them by one filter")[filters]
        if filters < 2
        else f", half of them by {filters} different filters"
    )
    return Row(
        name=name,
        unit="delivered/s",
        ours=(
            f"events through the hub to {clients} WebSocket client{'s' if clients > 1 else ''}, 256"
            f" a frame{what}"
        ),
        baseline=(
            "broadcast() of one prepared payload by the websockets library, uvloop"
            if library
            else "transport.write of one prepared frame, uvloop"
        ),
        clock=Clock.WALL,
        open=partial(_against_library if library else _against_bytes, clients, filters),
        expected_rate=rate,
    )


ROWS = (
    *(
        _row(f"websocket_{clients}", clients, rate=1e6 if clients == 100 else None)
        for clients in _CLIENTS
    ),
    *(
        _row(
            f"websocket_filter_{clients}",
            clients,
            filters=1,
            rate=1.5e6 if clients == 100 else None,
        )
        for clients in _CLIENTS
    ),
    _row("websocket_filters_100", 100, filters=100, rate=4e5),
    _row("websocket_100_library", 100, library=True),
)
