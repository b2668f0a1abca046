"""A child process of `mev up` with workers: an API worker, or the control process.

An API worker serves what carries the load: events in, streams, stored events and statistics. It
passes every other request on to the control process, which is a whole system without a TCP socket:
it runs everything that must run once on a machine, on the data folder that the supervisor has
locked.
"""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import uvloop

from mev import settings as settings_module
from mev.auth.passwords import FirstPassword
from mev.auth.service import FIRST_ADMIN
from mev.bus.boot import running_kafka, running_publisher
from mev.core import asgi, kernel
from mev.core.errors import MevError
from mev.core.supervisor import RestartPolicy
from mev.core.tasks import background
from mev.core.text import shown
from mev.host import routes as host_routes
from mev.host.health import Health
from mev.host.process import measured_process
from mev.ingest import routes as ingest_routes
from mev.ingest.raw_route import ingest_route
from mev.ingest.recent import History
from mev.realtime import routes as realtime_routes
from mev.realtime.boot import running_access, running_streams
from mev.server.app import create_app
from mev.server.forward import Forward, forward_limits
from mev.server.http import Listeners, Server, http_server, raise_open_files_limit
from mev.server.internal import (
    CONTROL_SOCKET,
    FOLDER,
    SharedConfig,
    SupervisorClient,
    supervised_app,
)
from mev.server.process import configure_process, end_after_shutdown
from mev.server.security import connection_shares, running_security
from mev.server.system import (
    Supervision,
    live_settings,
    raw_routes,
    running_parts,
    tune_interpreter,
)
from mev.settings import Settings
from mev.stats import routes as stats_routes
from mev.stats.service import Stats
from mev.store.boot import running_clickhouse, running_redis
from mev.store.folder import DataFolder

_OWN_PATHS = ("/api/health/", "/metrics", "/api/events/", "/api/stats", "/api/realtime/")
_CONTROL_PATHS = ("/api/health/details", "/api/realtime/webtransport")
"""Below the worker's own paths, but answered by the control process."""
_NO_CHILDREN = RestartPolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """Specification of a child by its supervisor; sockets are inherited file descriptors."""

    role: Literal["api", "control"]
    name: str
    url: str
    host: str
    sockets: dict[str, int]
    demo: bool = False

    def command(self) -> list[str]:
        """Return the command line that runs the child."""
        # -P: modules are not searched in the working directory.
        return [sys.executable, "-P", "-m", __name__, json.dumps(asdict(self))]

    def listeners(self) -> Listeners:
        """Return the inherited sockets."""
        named: dict[str, Any] = {
            name: socket.socket(fileno=number) for name, number in self.sockets.items()
        }
        return Listeners(url=self.url, host=self.host, **named)


def main() -> None:
    """Run the child that the only argument describes; errors are one line."""
    spec = ProcessSpec(**json.loads(sys.argv[1]))
    kernel.forbid_tracing()
    os.umask(0o077)
    settings = settings_module.load()
    configure_process(settings, name=spec.name)
    try:
        uvloop.run(_run(settings, spec))
    except MevError as error:
        sys.stderr.write(f"mev: {spec.name}: {shown(error.detail)}\n")
        sys.exit(1)


async def _run(settings: Settings, spec: ProcessSpec) -> None:
    folder = DataFolder(settings.mev_data_dir)
    workers = folder.path / FOLDER
    supervision = Supervision(
        supervisor=SupervisorClient(workers, timeout_s=2 * settings.service_timeout_s),
        config=SharedConfig(workers),
    )
    listeners = spec.listeners()
    if spec.role == "control":
        async with running_parts(
            settings, folder, listeners, demo=spec.demo, supervision=supervision
        ) as system:
            _report(folder, first_password=system.first_password, webtransport=system.webtransport)
            await system.serve()
            end_after_shutdown(settings)
    else:
        async with running_worker(settings, folder, listeners, supervision) as server:
            await server.serve(sockets=[listeners.tcp] if listeners.tcp else [])
            end_after_shutdown(settings)


@asynccontextmanager
async def running_worker(
    settings: Settings, folder: DataFolder, listeners: Listeners, supervision: Supervision
) -> AsyncIterator[Server]:
    """Start the parts of an API worker, yield its server, and stop the parts in reverse order."""
    async with AsyncExitStack() as stack:
        start = stack.enter_async_context
        open_files = raise_open_files_limit()
        process = await start(measured_process())
        redis = await start(running_redis(settings, folder.path, _NO_CHILDREN))
        clickhouse = await start(running_clickhouse(settings, folder.path))
        kafka = await start(running_kafka(settings, folder.path, _NO_CHILDREN))
        publisher = await start(running_publisher(settings, kafka.brokers))
        hub = await start(
            running_streams(
                settings,
                kafka.brokers,
                log=kafka.cluster_id,
                connections=connection_shares(settings, open_files).websocket,
            )
        )
        security = await start(
            running_security(
                settings, folder, redis.client, publisher.fullness, open_files=open_files
            )
        )
        access = await start(running_access(settings, hub, security.gate))
        forward = Forward(
            folder.path / FOLDER / CONTROL_SOCKET,
            forward_limits(settings),
            security.addresses,
        )
        stack.push_async_callback(forward.close)
        await start(background(supervision.config.follow(live_settings(hub))))
        health = Health(
            {
                "kafka": partial(asyncio.to_thread, kafka.cluster.ping),
                "clickhouse": partial(asyncio.to_thread, clickhouse.ping),
                "redis": redis.client.ping,
            },
            embedded=(),
            timeout_s=settings.service_timeout_s,
            optional=("redis",),
            confinement="",
        )
        ingest_app = ingest_route(settings, publisher, security.shedder.check_queue)
        app = create_app(
            [
                host_routes.router(supervision.supervisor),
                ingest_routes.router(
                    History(clickhouse, kafka.cluster_id, settings.query_timeout_s)
                ),
                stats_routes.router(Stats(clickhouse, settings.query_timeout_s)),
                realtime_routes.router(hub, security.keyring, None),
            ],
            raw_routes(ingest_app, hub, access),
            security.gate,
        )
        tune_interpreter()
        yield http_server(
            settings,
            _split(app, forward),
            security.connections,
            hub,
            access,
            listeners,
            internal=supervised_app(health, process),
        )


def _split(own: asgi.App, forward: asgi.App) -> asgi.App:
    """Return an application that serves the worker's paths and passes the others on."""

    async def app(scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        path = scope.get("path", "")
        is_own = path.startswith(_OWN_PATHS) and not path.startswith(_CONTROL_PATHS)
        await (own if is_own else forward)(scope, receive, send)

    return app


def _report(folder: DataFolder, *, first_password: str | None, webtransport: str | None) -> None:
    lines = []
    if webtransport:
        lines.append(f"WebTransport  {webtransport}")
    if first_password:
        file = FirstPassword(folder.path)
        file.keep(first_password)
        lines.append(
            f"Login  {FIRST_ADMIN}, password in {file.path}  "
            "(removed at the first login, or when it is changed)"
        )
    sys.stderr.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    main()
