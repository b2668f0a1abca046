"""Servers of the HTTP and WebSocket rows: an event loop in a thread, uvicorn as in production."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import uvicorn
import uvloop

from mev.core import asgi

_T = TypeVar("_T")
_STARTED_S = 0.005


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run `work` in the loop and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    @contextmanager
    def serve(self, app: asgi.App, ws: type[asyncio.Protocol] | None = None) -> Iterator[int]:
        """Serve `app` on a free port, which is given."""
        server = uvicorn.Server(_config(app, ws))
        serving = asyncio.run_coroutine_threadsafe(server.serve(), self._loop)
        try:
            yield self.run(_port(server))
        finally:
            server.should_exit = True
            serving.result()

    @contextmanager
    def listen(self, protocol: Callable[[], asyncio.Protocol]) -> Iterator[int]:
        """Accept connections for `protocol` on a free port, which is given."""
        server = self.run(self._listen(protocol))
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            self.run(_close(server))

    async def _listen(self, protocol: Callable[[], asyncio.Protocol]) -> asyncio.Server:
        return await self._loop.create_server(protocol, "127.0.0.1", 0, backlog=2048)


@contextmanager
def event_loop() -> Iterator[Loop]:
    """Run an event loop in a thread."""
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="bench-loop", daemon=True)
    thread.start()
    try:
        yield Loop(loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _config(app: asgi.App, ws: type[asyncio.Protocol] | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        port=0,
        ws=ws or "none",
        http="httptools",
        loop="none",
        interface="asgi3",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=5,
    )


async def _port(server: uvicorn.Server) -> int:
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(_STARTED_S)
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port


async def _close(server: asyncio.Server) -> None:
    server.close()
    await server.wait_closed()
