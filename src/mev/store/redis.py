"""Redis: a pool of connections to a server, embedded or not."""

from redis import asyncio as redis
from redis.exceptions import RedisError

from mev.core.errors import UnavailableError


class RedisUnavailableError(UnavailableError):
    """Redis does not answer."""

    code = "redis_unavailable"


class Redis:
    """A connection pool to the server at `url`, for one event loop."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._client = redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)

    async def ping(self) -> None:
        """Ask for an answer.

        :raises RedisUnavailableError: when it does not come.
        """
        try:
            await self._client.execute_command("PING")  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            raise RedisUnavailableError(f"Redis does not answer: {error}; check REDIS_URL", retry_after_s=5) from None

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()
