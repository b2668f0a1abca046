"""Start of the streams: the hub with its consumer and replay pool, access control, WebTransport."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import REGISTRY

from mev.auth.browser import Origins
from mev.bus.batch import PartitionBatch
from mev.bus.kafka import Brokers
from mev.bus.tail import Tail
from mev.core.tasks import Handover, background
from mev.realtime.access import PrincipalQuota, StreamAccess, StreamAuthenticator
from mev.realtime.hub import Hub
from mev.realtime.limits import HubLimits, WebTransportLimits
from mev.realtime.replay_pool import ReplayPool
from mev.realtime.webtransport.certificates import CertificateSource, Files, SelfSigned
from mev.realtime.webtransport.server import WebTransportServer
from mev.settings import Settings
from mev.wire.registry import EVENT_TYPES, EventType

_PENDING_HANDOVERS = 4
_CERTIFICATE_FOLDER = "webtransport"


@asynccontextmanager
async def running_hub(
    types: Mapping[str, EventType],
    brokers: Brokers,
    limits: HubLimits,
    *,
    log: str,
    replays: int,
    timeout_s: float,
) -> AsyncIterator[Hub]:
    """Yield a hub that receives all published events; `log` identifies the log of its offsets."""
    replay_pool = ReplayPool(brokers, limit=replays, timeout_s=timeout_s)
    hub = Hub(
        types,
        limits,
        REGISTRY,
        log=log,
        log_is_lasting=not brokers.embedded,
        replay_pool=replay_pool,
    )

    def push(batches: list[PartitionBatch]) -> None:
        handover.release()
        for batch in batches:
            hub.push(batch)

    handover = Handover(push, _PENDING_HANDOVERS)
    tail = Tail(
        brokers, [type_.topic for type_ in types.values()], handover.put, timeout_s=timeout_s
    )
    try:
        hub.begin(await asyncio.to_thread(tail.start))
        yield hub
    finally:
        await asyncio.to_thread(tail.close)
        hub.close()
        await hub.settled()
        await replay_pool.close()


@asynccontextmanager
async def running_streams(
    settings: Settings, brokers: Brokers, *, log: str, connections: int
) -> AsyncIterator[Hub]:
    """Yield a hub of all events; see :func:`running_hub` for `log`."""
    limits = HubLimits(
        batch_window_ms=settings.batch_window_ms,
        batch_max_size=settings.batch_max_size,
        queue_bytes=settings.ws_buffer_bytes,
        budget_bytes=settings.ws_budget_bytes,
        json_events_per_s=settings.ws_json_events_per_second,
        connections=connections,
        auth_timeout_s=settings.ws_auth_timeout_s,
        stall_timeout_s=settings.ws_stall_timeout_s,
        ping_interval_s=settings.ws_ping_interval_s,
        snapshot_keys=settings.ws_snapshot_keys,
        snapshot_scan_events=settings.ws_snapshot_scan_events,
    )
    async with running_hub(
        EVENT_TYPES,
        brokers,
        limits,
        log=log,
        replays=settings.ws_replays,
        timeout_s=settings.service_timeout_s,
    ) as hub:
        yield hub


@asynccontextmanager
async def running_access(
    settings: Settings, hub: Hub, authenticator: StreamAuthenticator
) -> AsyncIterator[StreamAccess]:
    """Yield the access control of the hub's clients, which checks open connections regularly."""
    quota = PrincipalQuota(
        connections=settings.ws_connections_per_principal,
        subscriptions=settings.ws_subscriptions_per_principal,
        bytes_per_s=settings.ws_bytes_per_second_per_principal or None,
    )
    access = StreamAccess(hub, authenticator, quota=quota, period_s=settings.access_cache_s)
    async with background(access.run()):
        yield access


@asynccontextmanager
async def running_webtransport(
    settings: Settings, folder: Path, hub: Hub, access: StreamAccess
) -> AsyncIterator[WebTransportServer]:
    """Serve the streams of `hub`; its own certificate is in the data folder `folder`."""
    source: CertificateSource = SelfSigned(folder / _CERTIFICATE_FOLDER)
    if settings.wt_certificate_file is not None:
        source = Files(settings.wt_certificate_file, settings.wt_key_file)
    bounds = WebTransportLimits(
        sessions=settings.wt_max_sessions,
        sessions_per_address=settings.wt_sessions_per_ip,
        unacknowledged_bytes=settings.wt_unacknowledged_bytes,
        stale_s=settings.wt_stale_s,
        idle_timeout_s=settings.wt_idle_timeout_s,
        max_datagram_bytes=settings.wt_max_datagram_bytes,
        low_latency=settings.wt_low_latency,
    )
    wt_server = WebTransportServer(
        hub,
        access,
        source,
        origins=Origins(settings.ws_allowed_origins),
        bounds=bounds,
        registry=REGISTRY,
    )
    try:
        await wt_server.start(settings.wt_host, settings.wt_port)
        yield wt_server
    finally:
        await wt_server.close()
