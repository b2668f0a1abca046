"""From settings to everything that decides who may do what, and how much of it."""

from collections.abc import Callable
from dataclasses import dataclass

from mev import wiring
from mev.auth.audit import Audit, no_audit
from mev.auth.authenticator import Authenticator
from mev.auth.browser import Origins
from mev.auth.first import FirstPassword
from mev.auth.keys import ApiKeys
from mev.auth.passwords import Passwords
from mev.auth.records import Backoff
from mev.auth.service import Accounts, Lifetimes
from mev.auth.store import AccountStore
from mev.auth.tokens import Keyring
from mev.gate import BodyLimits, Gate
from mev.limits.addresses import Addresses, parse_network
from mev.limits.bucket import Buckets, Rate
from mev.limits.connections import ConnectionLimits, Connections
from mev.limits.rate import RateLimiter
from mev.limits.shedding import LoadShedder
from mev.settings import Settings, split_keys
from mev.store.folder import DataFolder
from mev.store.redis import Redis

REDIS_TIMEOUT_S = 2.0
_JWT_KEY_FILE = "jwt-secret-key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """The parts that the composition hands on."""

    accounts: Accounts
    keys: ApiKeys
    authenticator: Authenticator
    keyring: Keyring
    passwords: Passwords
    gate: Gate
    shedder: LoadShedder
    connections: Connections
    limiter: RateLimiter


def build(settings: Settings, folder: DataFolder, redis: Redis, fullness: Callable[[], float], *, audit: Audit = no_audit) -> Security:
    """Return the parts; `redis` should answer quickly or not at all, `fullness` tells how full the publishing queue is."""
    store = AccountStore(redis)
    keyring = Keyring([_jwt_key(settings, folder), *split_keys(settings.jwt_previous_keys)])
    passwords = Passwords()
    addresses = Addresses([parse_network(text) for text in settings.trusted_proxies])
    limiter = RateLimiter(redis, Rate(settings.rate_limit_per_second, settings.effective_rate_burst))
    shedder = LoadShedder(max_lag_s=settings.shed_lag_ms / 1000, max_fullness=settings.shed_queue_fraction, fullness=fullness)
    authenticator = Authenticator(
        store, keyring, wiring.master_key(settings, folder), cache_s=settings.access_cache_s, stale_s=settings.access_stale_s
    )
    gate = Gate(
        authenticator=authenticator,
        keyring=keyring,
        limiter=limiter,
        strangers=Buckets(Rate(settings.ip_rate_per_second, settings.ip_rate_burst)),
        shedder=shedder,
        addresses=addresses,
        origins=Origins(settings.cors_allowed_origins),
        bodies=BodyLimits(
            size_bytes=settings.http_max_body_bytes, lane_bytes=settings.ingest_max_body_bytes, timeout_s=settings.http_body_timeout_s
        ),
        connect_sources=settings.csp_connect_sources,
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
        connections=Connections(_connection_limits(settings), addresses),
        limiter=limiter,
    )


def _jwt_key(settings: Settings, folder: DataFolder) -> str:
    return settings.jwt_secret_key.get_secret_value() if settings.jwt_secret_key else folder.secret(_JWT_KEY_FILE)


def _lifetimes(settings: Settings) -> Lifetimes:
    return Lifetimes(access_s=settings.access_token_s, session_s=settings.session_s, browser_s=settings.browser_session_s)


def _backoff(settings: Settings) -> Backoff:
    return Backoff(free=settings.login_free_failures, base_s=settings.login_lock_s, most_s=settings.login_lock_max_s)


def _connection_limits(settings: Settings) -> ConnectionLimits:
    return ConnectionLimits(
        total=settings.http_max_connections,
        per_address=settings.http_connections_per_ip,
        head_bytes=settings.http_max_header_bytes,
        head_timeout_s=settings.http_header_timeout_s,
        stall_timeout_s=settings.http_stall_timeout_s,
    )
