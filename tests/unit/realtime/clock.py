"""Time that passes when a test says so."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

_TURNS = 8


class Clock:
    """A manual clock for the running loop."""

    def __init__(self) -> None:
        self.now = 1000.0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Rule the running loop's time."""
        with mock.patch.object(asyncio.get_running_loop(), "time", self._time):
            yield

    async def forward(self, seconds: float = 0.0) -> None:
        """Let time pass, and everything happen that is due then."""
        self.now += seconds
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    def _time(self) -> float:
        return self.now
