"""The running system: its parts, started in order and stopped in reverse order.

Each part is started by the module `boot` of its area, or by a constructor where nothing has to be
stopped. A part gets the parts that it uses as arguments.
"""

import asyncio
import gc
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from mev.audit import routes as audit_routes
from mev.audit.boot import running_attempts, running_audit
from mev.auth import routes as auth_routes
from mev.auth.model import Permission
from mev.bus.boot import running_command_publisher, running_kafka, running_publisher
from mev.bus.kafka import Brokers
from mev.control import routes as control_routes
from mev.control.boot import running_control
from mev.control.runtime_config import RuntimeConfig
from mev.core.supervisor import RestartPolicy
from mev.core.tasks import background
from mev.dashboard import routes as dashboard_routes
from mev.datasets import boot as datasets
from mev.datasets import routes as datasets_routes
from mev.host import routes as host_routes
from mev.host.health import Check, Health
from mev.host.machine import MachineMonitor
from mev.host.process import measured_process
from mev.host.source import OwnHealth
from mev.ingest import raw_route as ingest
from mev.ingest import routes as ingest_routes
from mev.ingest.raw_route import ingest_route
from mev.ingest.recent import History
from mev.jobs import routes as jobs_routes
from mev.jobs.announce import Announcer
from mev.jobs.boot import find_confinement, running_jobs
from mev.realtime import routes as realtime_routes
from mev.realtime import sse
from mev.realtime.access import StreamAccess
from mev.realtime.boot import running_access, running_streams, running_webtransport
from mev.realtime.hub import Hub
from mev.realtime.websocket import handshake
from mev.realtime.websocket.connection import PATH as WS_PATH
from mev.registry import routes as models_routes
from mev.registry.boot import running_registry, store_checks
from mev.rollout import routes as deploy_routes
from mev.rollout.boot import running_deployments
from mev.server.app import RawRoute, create_app
from mev.server.http import Listeners, http_server, listening, raise_open_files_limit
from mev.server.internal import SharedConfig, SupervisorClient, supervised_app
from mev.server.security import connection_shares, running_security
from mev.settings import Settings
from mev.simulate.service import running_demo
from mev.sink import routes as sink_routes
from mev.sink.boot import running_sink
from mev.sink.readiness import WriteCheck, check_sink
from mev.sink.reconcile import Reconciler
from mev.stats import routes as stats_routes
from mev.stats.metrics import TradeMetrics
from mev.stats.service import Stats
from mev.store.boot import locked_folder, running_clickhouse, running_redis
from mev.store.folder import DataFolder, Runtime, master_key
from mev.store.objects import open_object_store
from mev.training import routes as training_routes
from mev.training.history import TrainingHistory
from mev.training.job import train_kind
from mev.training.service import make_trainings

_SWITCH_S = 0.001
"""Longest time that a computing thread holds the interpreter lock while the event loop waits.

Python's default of 5 ms would delay every step of a shutdown.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A running system, as shown to its operator."""

    api_url: str
    master_key: str
    first_password: str | None
    """First administrator's password, at the first start only; not stored."""
    webtransport: str | None
    """WebTransport URL, None if it is not served."""
    services: dict[str, str]
    brokers: Brokers
    serve: Callable[[], Any]


@asynccontextmanager
async def running(settings: Settings, *, demo: bool) -> AsyncIterator[System]:
    """Run the whole system in this process."""
    with (
        locked_folder(settings) as folder,
        listening(settings, folder.path) as listeners,
    ):
        async with running_parts(settings, folder, listeners, demo=demo) as system:
            folder.write_runtime(runtime_of(listeners, system.brokers))
            yield system


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """The supervisor and the live settings that the processes of one system share."""

    supervisor: SupervisorClient
    config: SharedConfig


@asynccontextmanager
async def running_parts(
    settings: Settings,
    folder: DataFolder,
    listeners: Listeners,
    *,
    demo: bool,
    supervision: Supervision | None = None,
) -> AsyncIterator[System]:
    """Start all parts, yield the system, and stop all parts in reverse order.

    Under `supervision`, workers receive the requests and pass on those that are not theirs.
    """
    async with AsyncExitStack() as stack:
        start = stack.enter_async_context
        data = folder.path
        open_files = raise_open_files_limit()
        process = await start(measured_process())

        # Services and their clients
        policy = _restart_policy(settings)
        redis = await start(running_redis(settings, data, policy))
        clickhouse = await start(running_clickhouse(settings, data))
        kafka = await start(running_kafka(settings, data, policy))
        brokers, cluster_id = kafka.brokers, kafka.cluster_id
        publisher = await start(running_publisher(settings, brokers))
        command_publisher = await start(running_command_publisher(settings, brokers))
        writes = WriteCheck(clickhouse, every_s=settings.health_write_check_s)
        checks: dict[str, Check] = {
            "kafka": partial(asyncio.to_thread, kafka.cluster.ping),
            "clickhouse": partial(asyncio.to_thread, writes.check),
            "redis": redis.client.ping,
        }

        # Sink
        sink = await start(running_sink(settings, brokers, cluster_id, clickhouse, publisher))
        checks["sink"] = partial(asyncio.to_thread, check_sink, sink)

        # Streams
        hub = await start(
            running_streams(
                settings,
                brokers,
                log=cluster_id,
                connections=connection_shares(settings, open_files).websocket,
            )
        )

        # Control
        audit = await start(
            running_audit(settings, data, "api", clickhouse, command_publisher, brokers)
        )
        live = RuntimeConfig(_live_settings(hub, supervision))
        control = await start(
            running_control(settings, data, brokers, command_publisher, audit, live)
        )
        keys = control.state.keys
        routers = [
            control_routes.router(control, live, report_interval_s=settings.report_interval_s),
            audit_routes.router(audit, clickhouse, timeout_s=settings.query_timeout_s),
        ]

        # Exports, trainings, models and deployments
        confinement = await find_confinement(settings)
        objects = open_object_store(settings)
        registry = await start(running_registry(settings, data, keys.trust, confinement, objects))
        checks |= store_checks(registry)
        shared = datasets.shared_exports(settings, objects, registry.pinned_jobs)
        runner = await start(
            running_jobs(
                data / "jobs",
                [
                    datasets.export_jobs(settings, clickhouse, shared),
                    train_kind(registry, keys, shared.fetch_all)
                    if shared
                    else train_kind(registry, keys),
                ],
                announce=Announcer(publisher),
                pinned=registry.pinned_jobs,
                confinement=confinement,
            )
        )
        exports = datasets.exports(settings, runner, clickhouse, shared)
        trainings = make_trainings(settings, runner, exports, confinement)
        deployments = await start(
            running_deployments(settings, data, control, registry, audit.record)
        )
        stats = Stats(clickhouse, settings.query_timeout_s)
        await start(background(TradeMetrics(stats).run(settings.trade_metrics_s)))
        routers += [
            stats_routes.router(stats),
            datasets_routes.router(exports, runner, audit=audit.record),
            jobs_routes.router(runner, audit=audit.record),
            training_routes.router(trainings, runner, audit=audit.record),
            models_routes.router(
                registry, keys, training_of=TrainingHistory(runner).of, audit=audit.record
            ),
            deploy_routes.router(deployments),
        ]

        # API
        security = await start(
            running_security(
                settings,
                folder,
                redis.client,
                publisher.fullness,
                open_files=open_files,
                audit=audit.record,
            )
        )
        access = await start(running_access(settings, hub, security.gate))
        attempts = await start(running_attempts(audit))
        wt_server = None
        if settings.enable_webtransport:
            wt_server = await start(running_webtransport(settings, data, hub, access))
        health = Health(
            checks,
            embedded=settings.embedded,
            timeout_s=settings.service_timeout_s,
            optional=("redis", "objects"),
            children={"redis": redis.supervisor, "kafka": kafka.supervisor},
            confinement=str(confinement),
        )
        routers += [
            host_routes.router(
                supervision.supervisor
                if supervision
                else OwnHealth(health, MachineMonitor(data), process)
            ),
            ingest_routes.router(History(clickhouse, cluster_id, settings.query_timeout_s)),
            sink_routes.router(
                Reconciler(brokers, cluster_id, clickhouse, settings.service_timeout_s)
            ),
            realtime_routes.router(hub, security.keyring, wt_server),
            dashboard_routes.router(),
            auth_routes.router(
                security.accounts,
                security.keys,
                security.authenticator,
                security.keyring,
                key_max_days=settings.api_key_max_days,
            ),
        ]
        ingest_app = ingest_route(settings, publisher, security.shedder.check_queue)
        app = create_app(
            routers, raw_routes(ingest_app, hub, access), security.gate, refused=attempts.add
        )
        server = http_server(
            settings,
            app,
            security.connections,
            hub,
            access,
            listeners,
            internal=supervised_app(health, process) if supervision else None,
        )

        if demo:
            await start(running_demo(publisher))
        tune_interpreter()
        yield System(
            api_url=listeners.url,
            master_key=master_key(settings, folder),
            first_password=await security.accounts.create_first_admin(),
            webtransport=str(wt_server.describe(listeners.host)["url"]) if wt_server else None,
            services={
                "kafka": brokers.servers,
                "clickhouse": clickhouse.place,
                "redis": redis.address,
            },
            brokers=brokers,
            serve=lambda: server.serve(sockets=[listeners.tcp] if listeners.tcp else []),
        )


def _live_settings(
    hub: Hub, supervision: Supervision | None
) -> Mapping[str, Callable[[Any], None]]:
    found = live_settings(hub)
    if supervision is None:
        return found
    return {key: supervision.config.setter(key, apply) for key, apply in found.items()}


def live_settings(hub: Hub) -> dict[str, Callable[[Any], None]]:
    """Return the settings that can change while the system runs, with what applies each."""
    return {"batch_window_ms": hub.set_window, "log_level": logging.getLogger().setLevel}


def _restart_policy(settings: Settings) -> RestartPolicy:
    return RestartPolicy(
        start_s=settings.service_timeout_s,
        stop_s=settings.service_timeout_s,
        probe_s=settings.child_probe_s,
        hang_s=settings.child_hang_s,
        pause_max_s=settings.child_restart_max_s,
    )


def raw_routes(ingest_app: ingest.IngestRoute, hub: Hub, access: StreamAccess) -> list[RawRoute]:
    """Return the routes that carry the load: health, streams and ingest."""
    event_stream = sse.EventStreamRoute(hub, access)
    return [
        RawRoute(
            "GET", host_routes.ALIVE_PATH, host_routes.health_route, host_routes.ALIVE_OPENAPI
        ),
        RawRoute("GET", WS_PATH, handshake.refuse_without_upgrade, handshake.OPENAPI),
        RawRoute("GET", sse.PATH, event_stream, sse.OPENAPI, Permission.STREAM_READ),
        RawRoute(
            "POST", ingest.PREFIX + "{type}", ingest_app, ingest.OPENAPI, Permission.EVENTS_WRITE
        ),
    ]


def runtime_of(listeners: Listeners, brokers: Brokers) -> Runtime:
    """Return the addresses of the system that this process runs, for other commands."""
    return Runtime(
        pid=os.getpid(),
        api=listeners.url,
        socket=listeners.commands.getsockname() if listeners.commands else None,
        kafka=brokers.servers,
        kafka_embedded=brokers.embedded,
    )


def tune_interpreter() -> None:
    """Set garbage collection and thread switches for a server that has started."""
    # Objects created at start stay; collecting them again and again would be slow.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    sys.setswitchinterval(_SWITCH_S)
