"""A Redis that is away costs its callers one time-out a second, not one each."""

import asyncio

import pytest

from mev.store.redis import Redis, RedisUnavailableError, Script


async def test_after_a_failure_nobody_waits_for_a_while() -> None:
    asked = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await reader.read(-1)
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    redis = Redis(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout_s=0.1)
    with pytest.raises(RedisUnavailableError):
        await redis.read_hash("a")
    before = asked
    redis._away_until += 600  # so that a slow machine does not end the pause
    for work in (redis.read_hash("a"), redis.delete("a"), redis.run(Script("return 1"), [])):
        with pytest.raises(RedisUnavailableError, match="a moment ago"):
            await work
    assert asked == before > 0
    with pytest.raises(RedisUnavailableError):
        await redis.ping()  # health asks all the same
    assert asked > before
    await redis.close()
    server.close()
    await server.wait_closed()
