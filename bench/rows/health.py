"""`GET /api/health/` of the whole running system, against an application that only answers."""

import asyncio
import os
import selectors
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

from bench.children import Pipe, child, wait_for_end
from bench.harness import Clock, Row, RowInput, Side, Sides
from bench.servers import event_loop
from mev import settings
from mev.host.routes import ALIVE_PATH, health_route
from mev.server.system import running

_CONNECTIONS = 32
_REQUESTS = 16_000
_REQUEST = b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % ALIVE_PATH.encode()
_ANSWER_END = b'{"status":"ok"}'
_WRK_S = 1


@contextmanager
def _open(setting: RowInput) -> Iterator[Sides]:
    with child(_bare) as bare_server, child(_system, setting.scratch) as system:
        bare, whole = bare_server.recv(), system.recv()
        if shutil.which("wrk"):
            yield Sides(_wrk(bare), _wrk(whole))
            return
        with child(_client, bare) as to_bare, child(_client, whole) as to_whole:
            yield Sides(_load(to_bare), _load(to_whole))


def _bare(pipe: Pipe) -> None:
    """Answer everything as the health endpoint answers."""
    with event_loop() as loop, loop.serve(health_route) as port:
        pipe.send(port)
        wait_for_end(pipe)


def _system(pipe: Pipe, folder: Path) -> None:
    """Run everything there is, on a folder of its own."""
    os.chdir(folder)  # the embedded engine may keep files in the working directory
    uvloop.run(_serve(pipe, folder / "data"))


async def _serve(pipe: Pipe, folder: Path) -> None:
    chosen = settings.load(mev_data_dir=folder, api_port=0, enable_webtransport=False)
    async with running(chosen, demo=False) as system:
        serving = asyncio.ensure_future(system.serve())
        pipe.send(urlsplit(system.api_url).port)
        await asyncio.to_thread(wait_for_end, pipe)
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving


def _load(pipe: Pipe) -> Side:
    def side() -> float:
        pipe.send(_REQUESTS)
        elapsed: float = pipe.recv()
        return _REQUESTS / elapsed

    return side


def _client(pipe: Pipe, port: int) -> None:
    """Send the number of requests given by the parent, one at a time on each open connection."""
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            for _ in range(_CONNECTIONS)
        ]
        for connection in connections:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(connection, selectors.EVENT_READ)
        while True:
            try:
                requests = pipe.recv()
            except EOFError:
                return
            pipe.send(_ask(connections, selector, requests))


def _ask(
    connections: list[socket.socket], selector: selectors.BaseSelector, requests: int
) -> float:
    started, missing, to_send = time.perf_counter(), requests, requests - len(connections)
    for connection in connections:
        connection.sendall(_REQUEST)
    while missing:
        for key, _ in selector.select():
            connection = cast("socket.socket", key.fileobj)
            # The server writes head and body apart, so an answer may come in two parts.
            if not connection.recv(4096).endswith(_ANSWER_END):
                continue
            missing -= 1
            if to_send > 0:
                to_send -= 1
                connection.sendall(_REQUEST)
    return time.perf_counter() - started


def _wrk(port: int) -> Side:
    command = [
        "wrk",
        "--threads",
        "1",
        "--connections",
        str(_CONNECTIONS),
        "--duration",
        f"{_WRK_S}s",
        f"http://127.0.0.1:{port}{ALIVE_PATH}",
    ]

    def side() -> float:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        (line,) = (line for line in output.splitlines() if line.startswith("Requests/sec:"))
        return float(line.split()[1])

    return side


ROW = Row(
    name="health",
    unit="requests/s",
    ours=f"GET {ALIVE_PATH} of the whole running system, {_CONNECTIONS} connections",
    baseline="an ASGI application that only gives the same answer, on the same server",
    clock=Clock.WALL,
    open=_open,
    expected_ratio=0.8,
)
