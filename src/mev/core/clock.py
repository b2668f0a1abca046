"""Wall-clock time in nanoseconds, the range of dates that fits into it, and a steady clock.

How code gets the time:

- A function that compares times takes the current time as an argument (`now_ns`, `at_ns`).
- A class that acts by the time of day takes `clock: Clock = now_ns` in its constructor and hands it
  to its parts. One that measures durations takes a clock in seconds, :func:`time.monotonic` unless
  given; in an event loop it is `loop.time`.
- Only the edges call :func:`now_ns` themselves: routes, commands, start-up, and code that only
  notes when something happened.

Tests set the time through these arguments, and replace no function.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Clock = Callable[[], int]
"""Returns nanoseconds since the Unix epoch."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = EPOCH + timedelta(microseconds=(2**63 - 1) // 1000)


def now_ns() -> int:
    """Return nanoseconds since the Unix epoch."""
    return time.time_ns()


def check_time(time: datetime) -> datetime:
    """Return `time` as an aware datetime; one without an offset is taken as UTC.

    :raises ValueError: if a 64-bit number of nanoseconds cannot hold it.
    """
    aware = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    if not EPOCH <= aware <= _LATEST:
        raise ValueError(
            f"not a time from {EPOCH:%Y-%m-%dT%H:%M:%SZ} to {_LATEST:%Y-%m-%dT%H:%M:%SZ}"
        )
    return aware


def to_ns(time: datetime) -> int:
    """Return the nanoseconds since the Unix epoch of a time checked with `check_time`."""
    return (time - EPOCH) // timedelta(microseconds=1) * 1000


def steady_clock(wall: Clock = now_ns, monotonic_ns: Clock = time.monotonic_ns) -> Clock:
    """Return a clock of nanoseconds since the epoch that is never slower than monotonic time.

    A lease must also expire when the wall clock is set back.
    """
    ahead_ns = wall() - monotonic_ns()

    def clock() -> int:
        return max(wall(), monotonic_ns() + ahead_ns)

    return clock
