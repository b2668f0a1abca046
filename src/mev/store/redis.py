"""Redis: a pool of connections to a server, embedded or not."""

import hashlib
import time
from collections.abc import Awaitable, Sequence
from typing import Any, cast

from redis import asyncio as redis
from redis.exceptions import NoScriptError, RedisError, ResponseError

from mev.core.errors import UnavailableError

_PAUSE_S = 1.0


class RedisUnavailableError(UnavailableError):
    """Redis does not answer."""

    code = "redis_unavailable"


class Script:
    """Lua that the server runs as one step, named by its digest once the server knows it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class Redis:
    """A connection pool to the server at `url`, for one event loop.

    After a failure every call but :meth:`ping` fails at once for a second, so that a server that is away costs callers no time-outs.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._client = redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        self._away_until = 0.0

    async def ping(self) -> None:
        """Ask for an answer.

        :raises RedisUnavailableError: when it does not come.
        """
        try:
            await self._client.execute_command("PING")  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            raise _unavailable(error) from None
        self._away_until = 0.0

    async def run(self, script: Script, keys: Sequence[str], *arguments: str | float) -> Any:
        """Return what `script` returns: integers, bytes, lists of them, or None.

        :raises RedisUnavailableError: when the server does not answer.
        """
        try:
            return await self._ask("EVALSHA", script.digest, len(keys), *keys, *arguments)
        except NoScriptError:  # the server is new, or was restarted
            return await self._ask("EVAL", script.source, len(keys), *keys, *arguments)

    async def read_hash(self, key: str) -> dict[str, str]:
        """Return the fields of a hash, none when there is no such key."""
        return as_text(await self._ask("HGETALL", key))

    async def delete(self, *keys: str) -> int:
        """Delete keys; return how many there were."""
        return int(await self._ask("DEL", *keys))

    async def ranked(self, key: str, after: float, limit: int) -> list[tuple[str, float]]:
        """Return up to `limit` members of a sorted set with a score above `after`, in order, with their scores."""
        found = await self._ask("ZRANGE", key, f"({after!r}", "+inf", "BYSCORE", "LIMIT", 0, limit, "WITHSCORES")
        flat = [part for entry in found for part in (entry if isinstance(entry, list | tuple) else (entry,))]
        return [(bytes(member).decode(), float(score)) for member, score in zip(flat[::2], flat[1::2], strict=True)]

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _ask(self, command: str, *arguments: str | float) -> Any:
        if time.monotonic() < self._away_until:
            raise _unavailable("it failed a moment ago")
        try:
            return await cast("Awaitable[Any]", self._client.execute_command(command, *arguments))  # type: ignore[no-untyped-call]
        except ResponseError:
            raise
        except (RedisError, OSError) as error:
            self._away_until = time.monotonic() + _PAUSE_S
            raise _unavailable(error) from None


def as_text(fields: Any) -> dict[str, str]:
    """Return what HGETALL gave, by whatever protocol version and from a script or not, as text."""
    pairs = fields.items() if isinstance(fields, dict) else zip(fields[::2], fields[1::2], strict=True)
    return {bytes(name).decode(): bytes(value).decode() for name, value in pairs}


def _unavailable(reason: object) -> RedisUnavailableError:
    return RedisUnavailableError(f"Redis does not answer: {reason}; check REDIS_URL", retry_after_s=5)
