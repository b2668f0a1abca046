"""Load shedding: some requests are refused early under overload, so that the rest is on time."""

import asyncio
from collections.abc import Callable

from prometheus_client import Counter

from mev.core.errors import MevError, UnavailableError

SHED = Counter(
    "mev_shed_requests_total", "Requests refused because there was too much to do.", ["reason"]
)
_LAG, _QUEUE = "lag", "queue"
_PERIOD_S = 0.05
_IDLE_PERIODS = 20


class RateLimitedError(MevError):
    """More requests were sent than the rate allows."""

    code = "rate_limited"
    status = 429


class OverloadedError(UnavailableError):
    """The server is overloaded; some requests are refused early."""

    code = "overloaded"


class LoadShedder:
    """Measures the delay of the event loop and the fill level of the publishing queue.

    Requests are refused above `max_lag_s` and `max_fullness` (0 to 1); `fullness` returns the fill
    level of the queue.
    """

    def __init__(
        self, *, max_lag_s: float, max_fullness: float, fullness: Callable[[], float]
    ) -> None:
        self._max_lag_s = max_lag_s
        self._max_fullness = max_fullness
        self._fullness = fullness
        for reason in (_LAG, _QUEUE):
            SHED.labels(reason)
        self.lag_s = 0.0
        """Recent delay of the event loop: rises at once, halves every twentieth of a second."""
        self._asked = asyncio.Event()

    async def watch(self) -> None:
        """Measure the delay while requests arrive, until cancelled."""
        loop = asyncio.get_running_loop()
        unasked = 0
        while True:
            due = loop.time() + _PERIOD_S
            await asyncio.sleep(_PERIOD_S)
            self.note(loop.time() - due)
            unasked = 0 if self._asked.is_set() else unasked + 1
            self._asked.clear()
            if unasked >= _IDLE_PERIODS and self.lag_s <= self._max_lag_s:
                await self._asked.wait()  # an idle system must not wake up for this

    def note(self, late_s: float) -> None:
        """Add a measurement."""
        self.lag_s = max(late_s, self.lag_s / 2)

    def check(self) -> None:
        """Check that the event loop is on time.

        :raises OverloadedError: if it is not.
        """
        self._asked.set()
        if self.lag_s > self._max_lag_s:
            SHED.labels(_LAG).inc()
            raise OverloadedError("the server is busy; send again in a moment", retry_after_s=1)

    def check_queue(self) -> None:
        """Check that the queue to the brokers has room for events.

        :raises OverloadedError: if it is nearly full.
        """
        if self._fullness() > self._max_fullness:
            SHED.labels(_QUEUE).inc()
            raise OverloadedError(
                "more events wait for the brokers than can be sent soon; send again in a moment",
                retry_after_s=1,
            )
