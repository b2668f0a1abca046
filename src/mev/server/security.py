"""Composition of authentication, authorization and limits from the settings."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mev.auth.audit import AuditCallback, no_audit
from mev.auth.authenticator import Authenticator
from mev.auth.browser import Origins
from mev.auth.keys import ApiKeys
from mev.auth.model import Backoff
from mev.auth.passwords import FirstPassword, Passwords
from mev.auth.service import Accounts, Lifetimes
from mev.auth.store import AccountStore
from mev.auth.tokens import Keyring
from mev.core.tasks import background
from mev.limits.addresses import Addresses, parse_network
from mev.limits.connections import ConnectionLimits, HttpConnections
from mev.limits.rate import Rate, RateLimiter
from mev.limits.shedding import LoadShedder
from mev.registry.style import STYLE_SOURCE
from mev.server.gate import BodyLimits, Gate
from mev.settings import Settings, split_keys
from mev.store.folder import DataFolder, master_key
from mev.store.redis import Redis

LOG = logging.getLogger(__name__)
_OTHER_FILES = 512  # tables, journals, brokers, reserved connections
_JWT_KEY_FILE = "jwt-secret-key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """The security components of the system."""

    accounts: Accounts
    keys: ApiKeys
    authenticator: Authenticator
    keyring: Keyring
    passwords: Passwords
    gate: Gate
    shedder: LoadShedder
    connections: HttpConnections
    addresses: Addresses
    limiter: RateLimiter


def build(
    settings: Settings,
    folder: DataFolder,
    redis: Redis,
    fullness: Callable[[], float],
    *,
    open_files: int = 65_536,
    audit: AuditCallback = no_audit,
) -> Security:
    """Return the components.

    `redis` must answer or fail quickly, `fullness` returns the fill level of the publishing queue,
    and `open_files` is the limit of open files and sockets of this process.
    """
    store = AccountStore(redis)
    keyring = Keyring([jwt_key(settings, folder), *split_keys(settings.jwt_previous_keys)])
    passwords = Passwords()
    addresses = Addresses([parse_network(text) for text in settings.trusted_proxies])
    limiter = RateLimiter(
        redis, Rate(settings.rate_limit_per_second, settings.effective_rate_burst)
    )
    control_limiter = RateLimiter(
        redis, Rate(settings.control_rate_per_second, settings.control_rate_burst)
    )
    shedder = LoadShedder(
        max_lag_s=settings.shed_lag_ms / 1000,
        max_fullness=settings.shed_queue_fraction,
        fullness=fullness,
    )
    authenticator = Authenticator(
        store,
        keyring,
        master_key(settings, folder),
        cache_s=settings.access_cache_s,
        stale_s=settings.access_stale_s,
    )
    gate = Gate(
        authenticator=authenticator,
        keyring=keyring,
        limiter=limiter,
        control_limiter=control_limiter,
        anonymous_rate=Rate(settings.ip_rate_per_second, settings.ip_rate_burst),
        shedder=shedder,
        addresses=addresses,
        origins=Origins(settings.cors_allowed_origins),
        bodies=BodyLimits(
            size_bytes=settings.http_max_body_bytes,
            max_ratio=settings.http_max_compression_ratio,
            lane_bytes=settings.ingest_max_body_bytes,
            timeout_s=settings.http_body_timeout_s,
        ),
        connect_sources=settings.csp_connect_sources,
        style_sources=[STYLE_SOURCE],
    )
    return Security(
        accounts=Accounts(
            store,
            keyring,
            passwords,
            lifetimes=_lifetimes(settings),
            backoff=_backoff(settings),
            first_password=FirstPassword(folder.path),
            audit=audit,
        ),
        keys=ApiKeys(store, audit=audit),
        authenticator=authenticator,
        keyring=keyring,
        passwords=passwords,
        gate=gate,
        shedder=shedder,
        connections=HttpConnections(_connection_limits(settings, open_files), addresses),
        addresses=addresses,
        limiter=limiter,
    )


@asynccontextmanager
async def running_security(
    settings: Settings,
    folder: DataFolder,
    redis: Redis,
    fullness: Callable[[], float],
    *,
    open_files: int,
    audit: AuditCallback = no_audit,
) -> AsyncIterator[Security]:
    """Yield the components of :func:`build`; the load of the event loop is watched."""
    security = build(settings, folder, redis, fullness, open_files=open_files, audit=audit)
    try:
        async with background(security.shedder.watch()):
            yield security
    finally:
        security.passwords.close()


def jwt_key(settings: Settings, folder: DataFolder) -> str:
    """Return the key that signs access tokens, of the settings or of the data folder."""
    return (
        settings.jwt_secret_key.get_secret_value()
        if settings.jwt_secret_key
        else folder.secret(_JWT_KEY_FILE)
    )


def _lifetimes(settings: Settings) -> Lifetimes:
    return Lifetimes(
        access_s=settings.access_token_s,
        session_s=settings.session_s,
        browser_s=settings.browser_session_s,
    )


def _backoff(settings: Settings) -> Backoff:
    return Backoff(
        free=settings.login_free_failures,
        base_s=settings.login_lock_s,
        most_s=settings.login_lock_max_s,
    )


@dataclass(frozen=True, slots=True)
class Shares:
    """Connections of each kind that fit into the limit of open files.

    Connections of one kind cannot use up the files of the process.
    """

    http: int
    websocket: int


def connection_shares(settings: Settings, open_files: int) -> Shares:
    """Return the limits of the settings, or less where a process may have only `open_files`."""
    room = max(2, open_files - _OTHER_FILES)
    http = min(settings.http_max_connections, max(room // 2, room - settings.ws_max_connections))
    return Shares(http, min(settings.ws_max_connections, room - http))


def _connection_limits(settings: Settings, open_files: int) -> ConnectionLimits:
    shares = connection_shares(settings, open_files)
    if shares != Shares(settings.http_max_connections, settings.ws_max_connections):
        LOG.warning(
            "only %d HTTP and %d WebSocket connections, not %d and %d, fit into %d open files; "
            "raise the limit (ulimit -n, LimitNOFILE)",
            shares.http,
            shares.websocket,
            settings.http_max_connections,
            settings.ws_max_connections,
            open_files,
            extra={"action": "few_open_files"},
        )
    return ConnectionLimits(
        total=shares.http,
        reserved=settings.http_control_connections,
        per_address=settings.http_connections_per_ip,
        head_bytes=settings.http_max_header_bytes,
        head_timeout_s=settings.http_header_timeout_s,
        pipelined=settings.http_pipelined_requests,
        stall_timeout_s=settings.http_stall_timeout_s,
    )
