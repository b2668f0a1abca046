"""Start of the data folder, and of Redis and ClickHouse: of the settings, or embedded."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mev.core.supervisor import RestartPolicy, Supervisor
from mev.settings import Settings
from mev.store.clickhouse import Address, ClickHouse
from mev.store.folder import DataFolder
from mev.store.redis import Redis, RedisAddress

REDIS_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisService:
    """A running Redis: its client, its address without credentials, and its supervisor."""

    client: Redis
    address: str
    supervisor: Supervisor | None
    """None if the service is not embedded."""


@contextmanager
def locked_folder(settings: Settings) -> Iterator[DataFolder]:
    """Yield the data folder, which is locked until the context ends.

    :raises FolderNotPrivateError: when another user may change what is in it.
    :raises ConflictError: when another process uses it.
    """
    folder = DataFolder(settings.mev_data_dir)
    folder.acquire()
    try:
        yield folder
    finally:
        folder.release()


@asynccontextmanager
async def running_redis(
    settings: Settings, folder: Path, restart_policy: RestartPolicy
) -> AsyncIterator[RedisService]:
    """Run the embedded Valkey on the data folder `folder` unless REDIS_URL is set.

    :raises RedisUnavailableError: if it does not answer.
    """
    async with AsyncExitStack() as stack:
        supervisor = None
        if settings.redis_url:
            place = redis_address(settings, settings.redis_url.get_secret_value())
            address = place.url.rpartition("@")[2]
        else:
            # The package of the `embedded` extra.
            from mev.store.valkey import EmbeddedValkey  # noqa: PLC0415

            valkey = EmbeddedValkey(
                folder / "valkey",
                timeout_s=settings.service_timeout_s,
                policy=restart_policy,
            )
            await asyncio.to_thread(valkey.start)
            stack.push_async_callback(asyncio.to_thread, valkey.stop)
            address = valkey.url
            place = RedisAddress(url=address)
            supervisor = valkey.supervisor
        client = Redis(place, timeout_s=min(REDIS_TIMEOUT_S, settings.service_timeout_s))
        stack.push_async_callback(client.close)
        await client.ping()
        yield RedisService(client=client, address=address, supervisor=supervisor)


def redis_address(settings: Settings, url: str) -> RedisAddress:
    """Return the address of the Redis at `url`, with the other settings of Redis."""
    password = settings.redis_sentinel_password.get_secret_value()
    return RedisAddress(
        url=url,
        mode=settings.redis_mode,
        sentinel_service=settings.redis_sentinel_service,
        sentinel_username=settings.redis_sentinel_username,
        sentinel_password=password or None,
        tls_ca_file=settings.redis_tls_ca_file,
        tls_cert_file=settings.redis_tls_cert_file,
        tls_key_file=settings.redis_tls_key_file,
    )


@asynccontextmanager
async def running_clickhouse(settings: Settings, folder: Path) -> AsyncIterator[ClickHouse]:
    """Open the embedded engine on the data folder `folder` unless CLICKHOUSE_HOST is set.

    :raises ClickHouseUnavailableError: if it does not answer.
    """
    async with AsyncExitStack() as stack:
        if not settings.clickhouse_host:
            # The embedded engine caches schemas in the working directory.
            stack.enter_context(contextlib.chdir(folder))
        clickhouse = ClickHouse(clickhouse_address(settings, folder))
        stack.push_async_callback(asyncio.to_thread, clickhouse.close)
        await asyncio.to_thread(clickhouse.ping)
        yield clickhouse


def clickhouse_address(settings: Settings, folder: Path) -> Address:
    """Return the address of CLICKHOUSE_HOST, or of the engine on the data folder `folder`."""
    if not settings.clickhouse_host:
        return Address(database=settings.clickhouse_database, path=folder / "clickhouse")
    return Address(
        database=settings.clickhouse_database,
        host=settings.clickhouse_host,
        port=settings.clickhouse_port,
        user=settings.clickhouse_user,
        password=settings.clickhouse_password.get_secret_value(),
        secure=settings.clickhouse_secure,
        timeout_s=settings.service_timeout_s,
        # the server enforces the query timeout and needs time to report it
        query_timeout_s=settings.query_timeout_s + settings.service_timeout_s,
        insert_timeout_s=settings.sink_insert_timeout_s,
    )
