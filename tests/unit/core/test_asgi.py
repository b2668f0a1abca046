"""Tests of the order in which large bodies are admitted."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from mev.core.asgi import LargeBodies
from tests.unit.realtime.clock import Clock


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    clock = Clock()
    with clock.installed():
        yield clock


async def test_large_body_waits_for_all_stops_in_progress(clock: Clock) -> None:
    large = LargeBodies()
    with large.stopping():
        with large.stopping():
            waiting = asyncio.create_task(large.turn())
            await clock.forward(0.1)
        await clock.forward(0.05)
        assert not waiting.done()
    await clock.forward()
    assert waiting.done()


async def test_stop_that_does_not_end_blocks_no_large_body(clock: Clock) -> None:
    large = LargeBodies()
    with large.stopping():
        waiting = [asyncio.create_task(large.turn()) for _ in range(3)]
        await clock.forward(0.21)
        assert all(task.done() for task in waiting)
    await large.turn()
