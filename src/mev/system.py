"""The running system: every part started in order, stopped in reverse.

What is embedded and what is a service is decided here, once, from the settings; every part below sees only addresses.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import APIRouter
from prometheus_client import REGISTRY

from mev import wiring
from mev.app import Lane, create_app
from mev.audit import routes as audit_routes
from mev.audit import running as audit_running
from mev.audit.service import Audit
from mev.auth import routes as auth_routes
from mev.auth.browser import Origins
from mev.auth.model import Permission
from mev.bus.embedded import EmbeddedBroker
from mev.bus.kafka import Brokers, Cluster
from mev.bus.publisher import Publisher
from mev.control import routes as control_routes
from mev.control.boot import running_control
from mev.control.hot import HotSettings
from mev.control.keys import open_keys
from mev.control.service import Control, Terms
from mev.core.clock import now_ns
from mev.core.errors import MevError, UnavailableError
from mev.datasets import routes as datasets_routes
from mev.datasets import service as datasets
from mev.datasets.export import Limits as ExportLimits
from mev.deploy import routes as deploy_routes
from mev.deploy import service as deploy
from mev.deploy.records import Records
from mev.host import lane as health_lane
from mev.host import routes as host_routes
from mev.host.health import Check, Health
from mev.ingest import lane as ingest_lane
from mev.ingest import routes as ingest_routes
from mev.ingest.service import Ingest
from mev.jobs import routes as jobs_routes
from mev.jobs import runner as jobs
from mev.jobs.announce import Announcer
from mev.jobs.model import Kind
from mev.limits.connections import http_class
from mev.models import routes as models_routes
from mev.models.registry import Registry
from mev.realtime import routes as realtime_routes
from mev.realtime.boot import running_hub
from mev.realtime.guard import Guard, Quota
from mev.realtime.hub import Hub
from mev.realtime.limits import Limits
from mev.realtime.server import websocket_class
from mev.realtime.webtransport.bounds import Bounds
from mev.realtime.webtransport.certificates import Files, SelfSigned, Source
from mev.realtime.webtransport.gateway import Gateway
from mev.security import REDIS_TIMEOUT_S, Security, build
from mev.settings import Settings, parse_kafka_options
from mev.simulate.model import Market
from mev.simulate.service import demonstrate
from mev.sink import routes as sink_routes
from mev.sink.partition import BlockLimits
from mev.sink.reconcile import Reconciler
from mev.sink.service import Sink
from mev.sink.writer import Writer, dead_letter_topic
from mev.store.clickhouse import ClickHouse
from mev.store.folder import DataFolder, Runtime
from mev.store.redis import Redis
from mev.training import routes as training_routes
from mev.training.job import train_kind
from mev.training.kept import KeptTrainings
from mev.training.service import TrainingQuota, Trainings
from mev.wire.registry import BY_TOPIC, EVENT_TYPES
from mev.wire.topics import AUDIT, CONTROL, DEAD_LETTER, REPORT

LOG = logging.getLogger(__name__)
DEMO_RATE_PER_S = 20.0


class AddressInUseError(MevError):
    """The API's address cannot be used."""

    code = "address_in_use"
    status = 409


class SinkFailedError(UnavailableError):
    """The sink does not run."""

    code = "sink_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A running system, for its operator."""

    api_url: str
    master_key: str
    first_password: str | None
    """The first administrator's, at the first start; shown once, kept nowhere."""
    webtransport: str | None
    """Its URL, where it is served."""
    services: dict[str, str]
    serve: Callable[[], Any]


@asynccontextmanager
async def running(settings: Settings, *, demo: bool) -> AsyncIterator[System]:
    """Start everything, yield the system, stop everything in reverse order."""
    async with AsyncExitStack() as stack:
        folder = DataFolder(settings.mev_data_dir)
        folder.acquire()
        stack.callback(folder.release)
        listener = stack.enter_context(_listen(settings))
        redis, redis_url = await _start_redis(settings, folder, stack)
        clickhouse = await _start_clickhouse(settings, folder, stack)
        brokers, cluster = await _start_kafka(settings, stack)
        publisher = wiring.open_publisher(settings, brokers)
        stack.push_async_callback(asyncio.to_thread, publisher.close)
        cluster_id = await asyncio.to_thread(cluster.id)
        sink = await _start_sink(settings, brokers, cluster_id, clickhouse, publisher, stack)
        hub = await _start_realtime(settings, brokers, cluster_id, stack)
        orders = _orders_publisher(settings, brokers, stack)
        audit = await stack.enter_async_context(
            audit_running.running(
                folder.path / "audit",
                "api",
                clickhouse,
                orders,
                checkpoint_s=settings.audit_checkpoint_s,
                retain_s=settings.audit_retention_days * 86_400,
            )
        )
        hot = HotSettings({"batch_window_ms": hub.set_window, "log_level": logging.getLogger().setLevel})
        kinds = [_export_kind(settings, clickhouse), train_kind()]
        runner = await stack.enter_async_context(jobs.running(folder.path / "jobs", kinds, announce=Announcer(publisher)))
        quota = datasets.Quota(
            jobs=settings.export_jobs_per_principal,
            size_bytes=settings.export_bytes_per_principal,
            part_rows_min=settings.export_part_rows_min,
        )
        exports = datasets.Exports(runner, clickhouse, quota)
        control = await _start_control(settings, folder, brokers, orders, audit, hot, stack)
        registry = Registry(settings.model_dir or folder.path / "models", control.book.keys.trust)
        deployments = deploy.Deployments(
            Records(folder.path / "deployments"), control, registry, silent_s=3 * settings.report_interval_s, audit=audit.record
        )
        await stack.enter_async_context(deploy.running(deployments, interval_s=settings.deploy_watch_s))
        if demo:
            task = asyncio.create_task(demonstrate(Market(now_ns(), DEMO_RATE_PER_S, now_ns()), publisher), name="demo")
            stack.push_async_callback(_cancel, task)

        checks = _checks(cluster, clickhouse, redis, sink)
        health = Health(checks, embedded=settings.embedded, timeout_s=settings.service_timeout_s, optional=("redis",))
        security = build(settings, folder, redis, publisher.fullness, audit=audit.record)
        stack.callback(security.passwords.close)
        guard = Guard(hub, security.gate, quota=_quota(settings), period_s=settings.access_cache_s)
        for watch in (security.shedder.watch(), guard.run()):
            stack.push_async_callback(_cancel, asyncio.create_task(watch))
        gateway = await _start_webtransport(settings, folder, hub, guard, stack) if settings.enable_webtransport else None
        routers = [
            host_routes.router(health),
            ingest_routes.router(clickhouse, timeout_s=settings.query_timeout_s),
            datasets_routes.router(exports, runner, audit=audit.record),
            jobs_routes.router(runner, audit=audit.record),
            training_routes.router(
                Trainings(
                    runner,
                    exports,
                    TrainingQuota(jobs=settings.train_jobs_per_principal, search_s=settings.train_search_max_s),
                    model_dir=registry.folder,
                    control_folder=folder.path / "control",
                ),
                runner,
                audit=audit.record,
            ),
            deploy_routes.router(deployments),
            models_routes.router(registry, control.book.keys, training_of=KeptTrainings(runner).of, audit=audit.record),
            control_routes.router(control, hot, report_interval_s=settings.report_interval_s),
            audit_routes.router(audit, clickhouse, timeout_s=settings.query_timeout_s),
            realtime_routes.router(hub, security.keyring, gateway),
            sink_routes.router(Reconciler(brokers, cluster_id, clickhouse, settings.service_timeout_s)),
        ]
        app = create_app([*routers, _accounts(settings, security)], _lanes(settings, publisher, security), security.gate)
        server = _server(settings, app, hub, guard, security)
        host, port = listener.getsockname()[:2]
        url = f"http://{host}:{port}"
        folder.write_runtime(Runtime(pid=os.getpid(), api=url, kafka=brokers.servers, kafka_embedded=brokers.embedded))
        services = {"kafka": brokers.servers, "clickhouse": clickhouse.place, "redis": redis_url}
        _settle_garbage_collector()
        yield System(
            api_url=url,
            master_key=wiring.master_key(settings, folder),
            first_password=await security.accounts.create_first_admin(),
            webtransport=str(gateway.describe(host)["url"]) if gateway is not None else None,
            services=services,
            serve=lambda: server.serve(sockets=[listener]),
        )


def _settle_garbage_collector() -> None:
    """Keep what was made at start out of every later collection: walking it costs more than the work that causes it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.api_host else socket.AF_INET
    try:
        return socket.create_server((settings.api_host, settings.api_port), family=family, backlog=2048)
    except OSError as error:
        raise AddressInUseError(
            f"cannot listen on {settings.api_host}:{settings.api_port} ({error.strerror}); choose another with API_HOST and API_PORT"
        ) from None


async def _start_redis(settings: Settings, folder: DataFolder, stack: AsyncExitStack) -> tuple[Redis, str]:
    if settings.redis_url:
        url = settings.redis_url.get_secret_value()
        shown = url.rpartition("@")[2]
    else:
        from mev.store.valkey import EmbeddedValkey  # noqa: PLC0415 - the package of the `embedded` extra

        valkey = EmbeddedValkey(folder.path / "valkey", timeout_s=settings.service_timeout_s)
        await asyncio.to_thread(valkey.start)
        stack.push_async_callback(asyncio.to_thread, valkey.stop)
        url = shown = valkey.url
    redis = Redis(url, timeout_s=min(REDIS_TIMEOUT_S, settings.service_timeout_s))
    stack.push_async_callback(redis.close)
    await redis.ping()
    return redis, shown


async def _start_clickhouse(settings: Settings, folder: DataFolder, stack: AsyncExitStack) -> ClickHouse:
    if not settings.clickhouse_host:
        stack.enter_context(contextlib.chdir(folder.path))  # the embedded engine keeps a cache of schemas in the working directory
    clickhouse = ClickHouse(wiring.clickhouse_address(settings, folder))
    stack.push_async_callback(asyncio.to_thread, clickhouse.close)
    await asyncio.to_thread(clickhouse.ping)
    return clickhouse


async def _start_kafka(settings: Settings, stack: AsyncExitStack) -> tuple[Brokers, Cluster]:
    if settings.kafka_brokers:
        brokers = Brokers(servers=settings.kafka_brokers, options=parse_kafka_options(settings.kafka_options))
    else:
        broker = await asyncio.to_thread(EmbeddedBroker, timeout_s=settings.service_timeout_s)
        stack.push_async_callback(asyncio.to_thread, broker.close)
        brokers = broker.brokers
    cluster = Cluster(brokers, timeout_s=settings.service_timeout_s)
    await asyncio.to_thread(cluster.ping)
    await asyncio.to_thread(cluster.ensure_topics, [*BY_TOPIC, DEAD_LETTER, REPORT, AUDIT])
    # One partition keeps orders in order; compacted, it holds what is in force for ever.
    await asyncio.to_thread(cluster.ensure_topics, [CONTROL], partitions=1, config={"cleanup.policy": "compact"})
    return brokers, cluster


async def _start_sink(
    settings: Settings, brokers: Brokers, cluster_id: str, clickhouse: ClickHouse, publisher: Publisher, stack: AsyncExitStack
) -> Sink:
    sink = Sink(
        brokers,
        BY_TOPIC,
        Writer(clickhouse, dead_letter_topic(publisher), cluster_id),
        limits=BlockLimits(rows=settings.sink_block_rows, size_bytes=settings.effective_sink_block_bytes, age_s=settings.sink_block_age_s),
        buffer_bytes=settings.sink_buffer_bytes,
        insert_threads=settings.sink_insert_threads,
        retry_max_s=settings.sink_retry_max_s,
        timeout_s=settings.service_timeout_s,
        stall_s=settings.sink_stall_s,
    )
    await asyncio.to_thread(sink.start)
    stack.push_async_callback(asyncio.to_thread, sink.close, settings.shutdown_timeout_s / 2)
    return sink


async def _start_realtime(settings: Settings, brokers: Brokers, log: str, stack: AsyncExitStack) -> Hub:
    limits = Limits(
        batch_window_ms=settings.batch_window_ms,
        batch_max_size=settings.batch_max_size,
        queue_bytes=settings.ws_buffer_bytes,
        budget_bytes=settings.ws_budget_bytes,
        json_events_per_s=settings.ws_json_events_per_second,
        connections=settings.ws_max_connections,
        auth_timeout_s=settings.ws_auth_timeout_s,
        stall_timeout_s=settings.ws_stall_timeout_s,
        ping_interval_s=settings.ws_ping_interval_s,
    )
    return await stack.enter_async_context(
        running_hub(EVENT_TYPES, brokers, limits, log=log, replays=settings.ws_replays, timeout_s=settings.service_timeout_s)
    )


async def _start_webtransport(settings: Settings, folder: DataFolder, hub: Hub, guard: Guard, stack: AsyncExitStack) -> Gateway:
    source: Source = SelfSigned(folder.path / "webtransport")
    if settings.wt_certificate_file is not None:
        source = Files(settings.wt_certificate_file, settings.wt_key_file)
    bounds = Bounds(
        sessions=settings.wt_max_sessions,
        sessions_per_address=settings.wt_sessions_per_ip,
        unacknowledged_bytes=settings.wt_unacknowledged_bytes,
        stale_s=settings.wt_stale_s,
        idle_timeout_s=settings.wt_idle_timeout_s,
        max_datagram_bytes=settings.wt_max_datagram_bytes,
        low_latency=settings.wt_low_latency,
    )
    gateway = Gateway(hub, guard, source, origins=Origins(settings.ws_allowed_origins), bounds=bounds, registry=REGISTRY)
    stack.push_async_callback(gateway.close)
    await gateway.start(settings.wt_host, settings.wt_port)
    return gateway


def _export_kind(settings: Settings, clickhouse: ClickHouse) -> Kind:
    limits = ExportLimits(
        memory_bytes=settings.export_memory_bytes, size_bytes=settings.export_bytes_per_principal, retry_s=settings.export_retry_s
    )
    return datasets.export_kind(clickhouse, limits, expires_s=settings.export_expires_s, folder=settings.export_dir)


def _quota(settings: Settings) -> Quota:
    return Quota(
        connections=settings.ws_connections_per_principal,
        subscriptions=settings.ws_subscriptions_per_principal,
        bytes_per_s=settings.ws_bytes_per_second_per_principal or None,
    )


def _orders_publisher(settings: Settings, brokers: Brokers, stack: AsyncExitStack) -> Publisher:
    """Return a publisher of its own for orders, so that no flood of events stands before a stop."""
    publisher = Publisher(
        brokers, queue_messages=100_000, queue_kbytes=settings.publish_queue_kbytes, linger_ms=0, timeout_s=settings.publish_timeout_s
    )
    stack.push_async_callback(asyncio.to_thread, publisher.close)
    return publisher


async def _start_control(
    settings: Settings,
    folder: DataFolder,
    brokers: Brokers,
    publisher: Publisher,
    audit: Audit,
    hot: HotSettings,
    stack: AsyncExitStack,
) -> Control:
    path = folder.path / "control"
    seed = settings.ctrl_sign_sk_hex.get_secret_value() if settings.ctrl_sign_sk_hex else None
    keys = await asyncio.to_thread(open_keys, path, seed_hex=seed, key_id=settings.ctrl_pubkey_id, now_ns=now_ns())
    terms = Terms(
        approvals_required=settings.effective_approvals_required,
        command_ttl_s=settings.command_ttl_s,
        proposal_ttl_s=settings.approval_ttl_s,
        lease_ttl_s=settings.lease_ttl_s,
        lease_renew_s=settings.lease_renew_s,
        publish_wait_s=settings.command_publish_wait_s,
        forget_agents_s=settings.agent_forget_days * 86_400,
        compact_journal_bytes=settings.control_journal_bytes,
    )
    return await stack.enter_async_context(
        running_control(
            path,
            keys,
            brokers,
            publisher,
            audit,
            hot,
            terms,
            report_interval_s=settings.report_interval_s,
            timeout_s=settings.service_timeout_s,
        )
    )


def _checks(cluster: Cluster, clickhouse: ClickHouse, redis: Redis, sink: Sink) -> dict[str, Check]:
    async def sink_runs() -> None:
        if sink.failure is not None:
            raise SinkFailedError(f"the sink ended: {sink.failure}; see the log, then restart")
        if not sink.has_joined:
            raise SinkFailedError("the sink waits for its share of the partitions, as it does for some seconds after a start")

    return {
        "kafka": lambda: asyncio.to_thread(cluster.ping),
        "clickhouse": lambda: asyncio.to_thread(clickhouse.ping),
        "redis": redis.ping,
        "sink": sink_runs,
    }


def _accounts(settings: Settings, security: Security) -> APIRouter:
    return auth_routes.router(
        security.accounts, security.keys, security.authenticator, security.keyring, key_max_days=settings.api_key_max_days
    )


def _lanes(settings: Settings, publisher: Publisher, security: Security) -> list[Lane]:
    ingest = Ingest(publisher, max_record_bytes=settings.ingest_max_record_bytes)
    check = security.shedder.check_queue
    take = ingest_lane.IngestLane(ingest, check, settings.ingest_max_body_bytes, settings.http_body_timeout_s)
    return [
        Lane("GET", health_lane.PATH, health_lane.health_lane, health_lane.OPENAPI),
        Lane("POST", ingest_lane.PREFIX + "{type}", take, ingest_lane.OPENAPI, Permission.EVENTS_WRITE),
    ]


def _server(settings: Settings, app: Any, hub: Hub, guard: Guard, security: Security) -> uvicorn.Server:
    return _Server(
        uvicorn.Config(
            app,
            ws=websocket_class(hub, guard, origins=Origins(settings.ws_allowed_origins)),
            http=http_class(security.connections),
            loop="none",
            interface="asgi3",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,  # the gate reads them, and believes fewer
            timeout_keep_alive=settings.http_keep_alive_s,
            timeout_graceful_shutdown=int(settings.shutdown_timeout_s),
        )
    )


class _Server(uvicorn.Server):
    """uvicorn, without its habit of raising the signal again when it has stopped: the rest of the system stops after it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
