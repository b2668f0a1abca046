"""The HTTP server on a TCP address and on Unix sockets in the data folder."""

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import uvicorn

from mev.auth.browser import Origins
from mev.core import asgi
from mev.core.errors import ConflictError
from mev.limits.connections import HttpConnections
from mev.limits.protocol import http_class
from mev.realtime.access import StreamAccess
from mev.realtime.hub import Hub
from mev.realtime.websocket.connection import websocket_class
from mev.server.forward import forward_limits, with_peer
from mev.settings import Settings
from mev.store.folder import LONGEST_SOCKET_PATH_BYTES

LOG = logging.getLogger(__name__)
_BACKLOG = 2048
_OPEN_FILES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """The listening sockets of one process, None for those that it does not have.

    `url` and `host` are those of the API, also in a process without its TCP socket.
    """

    url: str
    host: str
    tcp: socket.socket | None = None
    commands: socket.socket | None = None
    """Of the commands on this machine; None if the data folder's path is too long."""
    forwarded: socket.socket | None = None
    """Of requests that workers pass on to the control process."""
    internal: socket.socket | None = None
    """Of the supervisor's probes."""


def listeners_at(tcp: socket.socket, commands: socket.socket | None) -> Listeners:
    """Return the listeners of a system in one process."""
    return Listeners(url=url_of(tcp), host=str(tcp.getsockname()[0]), tcp=tcp, commands=commands)


def url_of(tcp: socket.socket) -> str:
    """Return the URL of the API at the socket `tcp`."""
    return f"http://{tcp.getsockname()[0]}:{tcp.getsockname()[1]}"


@contextmanager
def listening(settings: Settings, folder: Path) -> Iterator[Listeners]:
    """Listen on the API's TCP address and on an owner-only Unix socket in the data folder.

    :raises ConflictError: if the TCP address cannot be used.
    """
    with ExitStack() as stack:
        tcp = stack.enter_context(listen(settings.api_host, settings.api_port))
        yield listeners_at(tcp, listen_for_commands(folder, stack))


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a socket that listens on a TCP address; `shared` ones may be several (SO_REUSEPORT).

    :raises ConflictError: if the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, reuse_port=shared
        )
    except OSError as error:
        raise ConflictError(
            f"cannot listen on {host}:{port} ({error.strerror}); "
            "choose another with API_HOST and API_PORT",
            code="address_in_use",
        ) from None


def listen_for_commands(folder: Path, stack: ExitStack | AsyncExitStack) -> socket.socket | None:
    """Return the Unix socket of the commands on this machine; None if its path is too long."""
    path = folder / "api.sock"
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH_BYTES:
        LOG.warning(
            "%s is too long for a Unix socket; commands use TCP; choose a shorter MEV_DATA_DIR",
            path,
            extra={"action": "local_socket_too_long"},
        )
        return None
    listener = stack.enter_context(listen_locally(path))
    stack.callback(path.unlink, missing_ok=True)
    return listener


def listen_locally(path: Path) -> socket.socket:
    """Return an owner-only Unix socket that listens at `path`; a former one there is replaced."""
    path.unlink(missing_ok=True)  # left by a killed process: this one holds the folder's lock
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.fchmod(listener.fileno(), 0o600)  # before bind, so that other users can never connect
    listener.bind(os.fspath(path))
    listener.listen(_BACKLOG)
    return listener


def raise_open_files_limit() -> int:
    """Raise the limit of open files as far as the system allows, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft if soft != resource.RLIM_INFINITY else wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """How connections are closed at a stop.

    For `seconds`, connections are served one more request, answered with ``Connection: close``.
    """

    connections: Sequence[HttpConnections]
    seconds: float


class Server(uvicorn.Server):
    """A uvicorn server on a TCP socket and on Unix sockets, each with its own configuration.

    It does not raise the signal again after stopping: the other parts stop after it. `end_streams`
    is called when it starts to stop, because endless responses would block it. `internal` is open
    until the end.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        local: Sequence[tuple[socket.socket, uvicorn.Config]] = (),
        internal: tuple[socket.socket, uvicorn.Config] | None = None,
        end_streams: Callable[[], None] = lambda: None,
        drain: Drain | None = None,
        handles_signals: bool = True,
    ) -> None:
        super().__init__(config)
        self._local = local
        self._internal = internal
        self._end_streams = end_streams
        self._drain = drain
        self._handles_signals = handles_signals

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.should_exit:
            return
        for listener, config in [*self._local, *([self._internal] if self._internal else [])]:
            self.servers.append(await self._listen(listener, config))

    async def _listen(self, listener: socket.socket, config: uvicorn.Config) -> asyncio.Server:
        if not config.loaded:
            config.load()
        protocol = partial(
            cast("Any", config.http_protocol_class),
            config=config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        return await asyncio.get_running_loop().create_unix_server(protocol, sock=listener)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers[: -1 if self._internal else None]:
            server.close()
        self._end_streams()
        if self._drain is not None:
            await self._wait_for_last_requests(self._drain)
        await super().shutdown(sockets)

    async def _wait_for_last_requests(self, drain: Drain) -> None:
        for connection in self.server_state.connections:
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_started:
                cycle.keep_alive = False
        await asyncio.gather(*(each.end(drain.seconds) for each in drain.connections))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM) if self._handles_signals else ()
        for number in signals:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)


def http_server(
    settings: Settings,
    app: asgi.App,
    connections: HttpConnections,
    hub: Hub,
    access: StreamAccess,
    listeners: Listeners,
    *,
    internal: asgi.App | None = None,
) -> Server:
    """Return a server of `app` and of WebSocket clients of `hub`.

    Its `serve` takes the TCP socket. In one of several processes, `internal` answers the
    supervisor.
    """
    websockets = websocket_class(
        hub, access, origins=Origins(settings.ws_allowed_origins), deflate=settings.ws_deflate
    )

    def config_of(served: asgi.App, counted: HttpConnections) -> uvicorn.Config:
        return _config(
            served,
            ws=websockets,
            http=http_class(counted),
            timeout_keep_alive=settings.http_keep_alive_s,
            timeout_graceful_shutdown=int(settings.shutdown_timeout_s),
        )

    config = config_of(app, connections)
    # Each worker keeps to its share; beyond it are only requests whose body is not complete.
    forwarded = connections.of_workers(settings.api_workers * forward_limits(settings).most)
    local = [(listeners.commands, config)] if listeners.commands else []
    if listeners.forwarded:
        local.append((listeners.forwarded, config_of(with_peer(app), forwarded)))
    supervised = (
        (listeners.internal, internal_config(internal)) if internal and listeners.internal else None
    )
    return Server(
        config,
        local=local,
        internal=supervised,
        end_streams=hub.disconnect_all,
        drain=Drain(connections=(connections, forwarded), seconds=settings.drain_s)
        if supervised
        else None,
    )


def internal_config(app: asgi.App) -> uvicorn.Config:
    """Return the configuration of a server for the processes of this system only."""
    return _config(app, ws="none", http="httptools", timeout_graceful_shutdown=1)


def _config(app: asgi.App, **options: Any) -> uvicorn.Config:
    return uvicorn.Config(
        cast("Any", app),
        loop="none",
        interface="asgi3",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # the gate reads them, from trusted proxies only
        **options,
    )
