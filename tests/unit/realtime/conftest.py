"""A manual clock; and property tests have no deadline: their time says nothing about the code."""

from collections.abc import AsyncIterator

import pytest
from hypothesis import settings

from tests.unit.realtime.clock import Clock

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    """Return a clock that rules the running loop's time."""
    clock = Clock()
    with clock.installed():
        yield clock
