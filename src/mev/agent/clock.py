"""The agent's clock: the time of day, which setting the clock back cannot stop."""

import time
from collections.abc import Callable

from mev.core.clock import now_ns

Clock = Callable[[], int]


def steady_clock() -> Clock:
    """Return a clock of nanoseconds since the epoch that never runs slower than time passes.

    A lease must end also when the time of day is set back while it runs.
    """
    ahead_ns = now_ns() - time.monotonic_ns()

    def clock() -> int:
        return max(now_ns(), time.monotonic_ns() + ahead_ns)

    return clock
