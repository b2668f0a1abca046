"""A manual clock."""

from collections.abc import AsyncIterator

import pytest

from tests.unit.realtime.clock import Clock


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    """Return a clock that rules the running loop's time."""
    clock = Clock()
    with clock.installed():
        yield clock
