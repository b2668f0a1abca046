"""Time: wall-clock nanoseconds for events."""

import time


def now_ns() -> int:
    """Return nanoseconds since the Unix epoch."""
    return time.time_ns()
