"""Redis client: a connection pool to a server, to the master of Sentinels, or to a cluster."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from redis import asyncio as redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import (
    ClusterDownError,
    NoPermissionError,
    NoScriptError,
    RedisError,
    ResponseError,
)

from mev.core.errors import UnavailableError

REDIS_PORT, SENTINEL_PORT = 6379, 26379
RedisMode = Literal["server", "sentinel", "cluster"]
_PAUSE_S = 1.0


class RedisUnavailableError(UnavailableError):
    """Redis does not answer."""

    code = "redis_unavailable"


class Script:
    """A Lua script that the server runs atomically, called by its digest once loaded."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """How to reach Redis.

    `url` may name several hosts, comma-separated: Sentinels that monitor `sentinel_service`, or
    nodes of a cluster. User and password of the URL are those of the server, not of Sentinels. The
    files are PEM files for TLS, which the scheme ``rediss://`` selects.
    """

    url: str
    mode: RedisMode = "server"
    sentinel_service: str = "mymaster"
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    tls_ca_file: Path | None = None
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None


class Redis:
    """A connection pool to the server at `address`, for one event loop.

    After a failure, all calls except :meth:`ping` fail at once for a second, so that an unavailable
    server does not cost every caller a time-out.
    """

    def __init__(self, address: RedisAddress | str, *, timeout_s: float) -> None:
        if isinstance(address, str):
            address = RedisAddress(url=address)
        self._sentinel: Sentinel | None = None
        options: dict[str, Any] = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
        if address.mode == "server":
            self._client: Any = redis.from_url(address.url, **options, **_tls(address))
        else:
            self._connect_to_several(address, options)
        self._away_until = 0.0

    def _connect_to_several(self, address: RedisAddress, options: dict[str, Any]) -> None:
        hosts, found = _hosts(address)
        if address.mode == "cluster":
            nodes = [ClusterNode(host, port) for host, port in hosts]
            self._client = RedisCluster(startup_nodes=nodes, **options, **found)
            return
        of_sentinels = {**found, "db": 0}
        of_sentinels["username"] = address.sentinel_username
        of_sentinels["password"] = address.sentinel_password
        self._sentinel = Sentinel(  # type: ignore[no-untyped-call]
            hosts, sentinel_kwargs={**options, **of_sentinels}
        )
        self._client = self._sentinel.master_for(address.sentinel_service, **options, **found)

    async def ping(self) -> None:
        """Check that the server answers.

        :raises RedisUnavailableError: if it does not.
        """
        try:
            await self._client.execute_command("PING")
        except (RedisError, OSError) as error:
            raise _unavailable(error) from None
        self._away_until = 0.0

    async def version(self) -> str:
        """Return name and version of the server.

        :raises RedisUnavailableError: if it does not answer.
        """
        found: dict[str, Any] = await self._ask("INFO", "server")
        if "redis_version" not in found and found:  # of a cluster: by node
            found = next(iter(found.values()))
        if "valkey_version" in found:
            return f"Valkey {found['valkey_version']}"
        return f"Redis {found.get('redis_version', 'of unknown version')}"

    async def run(self, script: Script, keys: Sequence[str], *arguments: str | float) -> Any:
        """Return the result of `script`: integers, bytes, lists of them, or None.

        :raises RedisUnavailableError: if the server does not answer.
        """
        try:
            return await self._ask("EVALSHA", script.digest, len(keys), *keys, *arguments)
        except NoScriptError:  # the server has restarted
            return await self._ask("EVAL", script.source, len(keys), *keys, *arguments)

    async def read_hash(self, key: str) -> dict[str, str]:
        """Return the fields of a hash, empty if the key does not exist."""
        return as_text(await self._ask("HGETALL", key))

    async def delete(self, *keys: str) -> int:
        """Delete keys; return the number deleted."""
        return int(await self._ask("DEL", *keys))

    async def ranked(self, key: str, after: float, limit: int) -> list[tuple[str, float]]:
        """Return up to `limit` members of a sorted set with scores above `after`, in order.

        Each is returned with its score.
        """
        found = await self._ask(
            "ZRANGE", key, f"({after!r}", "+inf", "BYSCORE", "LIMIT", 0, limit, "WITHSCORES"
        )
        flat = [
            part
            for entry in found
            for part in (entry if isinstance(entry, list | tuple) else (entry,))
        ]
        return [
            (bytes(member).decode(), float(score))
            for member, score in zip(flat[::2], flat[1::2], strict=True)
        ]

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()
        for sentinel in self._sentinel.sentinels if self._sentinel else ():
            await sentinel.aclose()

    async def _ask(self, command: str, *arguments: str | float) -> Any:
        if time.monotonic() < self._away_until:
            raise _unavailable("it failed a moment ago")
        try:
            return await self._client.execute_command(command, *arguments)
        except NoPermissionError as error:
            raise RedisUnavailableError(
                f"Redis does not permit {command} to its user: {error}; grant it the rules of "
                "docs/accounts.md, or name another user in REDIS_URL"
            ) from None
        except ClusterDownError as error:
            raise _unavailable(error) from None
        except ResponseError:
            raise
        except (RedisError, OSError) as error:
            self._away_until = time.monotonic() + _PAUSE_S
            raise _unavailable(error) from None


def _hosts(address: RedisAddress) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    """Return the hosts of a URL that may name several, and the options of each connection."""
    parts = urlsplit(address.url)
    credentials, _, places = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    port = SENTINEL_PORT if address.mode == "sentinel" else REDIS_PORT
    options: dict[str, Any] = {
        "username": unquote(user) or None,
        "password": unquote(password) or None,
        **_tls(address),
    }
    if parts.scheme == "rediss":
        options["ssl"] = True
    if address.mode == "sentinel" and parts.path.strip("/"):
        options["db"] = int(parts.path.strip("/"))
    return [split_host(place, port) for place in places.split(",")], options


def split_host(place: str, port: int) -> tuple[str, int]:
    """Return the host and the port of ``host:port``; without one, `port`."""
    parts = urlsplit(f"//{place.strip()}")
    return parts.hostname or "", parts.port or port


def _tls(address: RedisAddress) -> dict[str, Any]:
    files = {
        "ssl_ca_certs": address.tls_ca_file,
        "ssl_certfile": address.tls_cert_file,
        "ssl_keyfile": address.tls_key_file,
    }
    return {name: str(file) for name, file in files.items() if file is not None}


def as_text(fields: Any) -> dict[str, str]:
    """Return the result of HGETALL as text, for any protocol version, also from a script."""
    pairs = (
        fields.items() if isinstance(fields, dict) else zip(fields[::2], fields[1::2], strict=True)
    )
    return {bytes(name).decode(): bytes(value).decode() for name, value in pairs}


def _unavailable(reason: object) -> RedisUnavailableError:
    return RedisUnavailableError(
        f"Redis does not answer: {reason}; check REDIS_URL", retry_after_s=5
    )
