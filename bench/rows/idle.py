"""Memory per idle, authenticated and subscribed connection, against a minimal protocol.

Each round has its own server process, and its growth is divided by the number of connections. A
rate is connections per GB.
"""

import asyncio
import gc
import os
import resource
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from bench import sockets
from bench.children import Pipe, child
from bench.harness import Clock, Row, RowFigures, RowInput, Side, Sides
from bench.servers import event_loop

_CONNECTIONS = 2000
_FIRST = 50  # whatever a server makes once, it has made for these
_EXPECTED_BYTES = 27_000


@contextmanager
def _open(setting: RowInput) -> Iterator[Sides]:
    del setting
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    yield Sides(_side(_bare, None), _side(_hub, sockets.subscribe("opportunity")), _notes)


def _side(server: Callable[[Pipe], None], message: bytes | None) -> Side:
    def side() -> float:
        with child(server) as pipe, ExitStack() as stack:
            port = pipe.recv()

            def grow(connections: int) -> int:
                for _ in range(connections):
                    stack.enter_context(sockets.connect(port, message))
                pipe.send("measure")
                size: int = pipe.recv()
                return size

            before = grow(_FIRST)
            return 1e9 * _CONNECTIONS / (grow(_CONNECTIONS) - before)

    return side


def _hub(pipe: Pipe) -> None:
    with event_loop() as loop, sockets.serve_hub(loop, 256) as served:
        _answer(pipe, served.port)


def _bare(pipe: Pipe) -> None:
    transports: list[asyncio.Transport] = []

    with event_loop() as loop, loop.listen(partial(sockets.GreetingProtocol, transports)) as port:
        _answer(pipe, port)


def _answer(pipe: Pipe, port: int) -> None:
    """Say how much memory this process has, whenever it is asked."""
    pipe.send(port)
    try:
        while True:
            pipe.recv()
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            pipe.send(pages * os.sysconf("SC_PAGE_SIZE"))
    except EOFError:
        return


def _notes(figures: RowFigures) -> list[str]:
    ours, bare = (1e6 / statistics.median(rates) for rates in (figures.ours, figures.baseline))
    return [f"{ours:.1f} KB a connection, bare {bare:.1f} KB"]


ROW = Row(
    name="idle_connections",
    unit="connections/GB",
    ours=(
        f"resident memory for {_CONNECTIONS:,} WebSocket connections, authenticated and subscribed"
    ),
    baseline="the same for connections of a protocol that greets, uvloop",
    clock=Clock.WALL,
    open=_open,
    expected_rate=1e9 / _EXPECTED_BYTES,
)
