"""Refusing some work early when there is too much of it, so that the rest is done in time."""

import asyncio
from collections.abc import Callable

from prometheus_client import Counter

from mev.limits.errors import OverloadedError

SHED = Counter("mev_shed_requests_total", "Requests refused because there was too much to do.", ["reason"])
_PERIOD_S = 0.05


class LoadShedder:
    """Watches how late the event loop runs and how full the publishing queue is.

    `max_lag_s` and `max_fullness` (0 to 1) are where refusing starts; `fullness` tells how full the queue is.
    """

    def __init__(self, *, max_lag_s: float, max_fullness: float, fullness: Callable[[], float]) -> None:
        self._max_lag_s = max_lag_s
        self._max_fullness = max_fullness
        self._fullness = fullness
        self.lag_s = 0.0
        """How late the loop ran lately: grows at once, halves every twentieth of a second."""

    async def watch(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _PERIOD_S
            await asyncio.sleep(_PERIOD_S)
            self.note(loop.time() - due)

    def note(self, late_s: float) -> None:
        """Take a measurement."""
        self.lag_s = max(late_s, self.lag_s / 2)

    def check(self) -> None:
        """Refuse when the event loop is late.

        :raises OverloadedError: then.
        """
        if self.lag_s > self._max_lag_s:
            SHED.labels("lag").inc()
            raise OverloadedError("the server is busy; send again in a moment", retry_after_s=1)

    def check_queue(self) -> None:
        """Refuse events when the queue to the brokers is nearly full.

        :raises OverloadedError: then.
        """
        if self._fullness() > self._max_fullness:
            SHED.labels("queue").inc()
            raise OverloadedError("more events wait for the brokers than can be sent soon; send again in a moment", retry_after_s=1)
