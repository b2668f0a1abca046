"""Tests of the order in which large bodies are admitted."""

import asyncio

from mev.core.asgi import LargeBodies


async def test_large_body_waits_for_all_stops_in_progress() -> None:
    large = LargeBodies()
    with large.stopping():
        with large.stopping():
            waiting = asyncio.create_task(large.turn())
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        assert not waiting.done()
    await waiting


async def test_endless_stops_do_not_block_large_bodies() -> None:
    large = LargeBodies()
    with large.stopping():
        await large.turn()
        await large.turn()
    await large.turn()
