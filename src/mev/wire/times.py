"""Valid range of event times; the error for a time in another unit names that unit."""

from dataclasses import dataclass
from datetime import UTC, datetime

from mev.wire.registry import EventType

_SECOND_NS = 1_000_000_000
_UNITS_NS = {"microseconds": 1_000, "milliseconds": 1_000_000, "seconds": _SECOND_NS}


def time_fields(event: EventType) -> tuple[str, ...]:
    """Return the fields of `event` that are points in time."""
    return tuple(field.name for field in event.fields if field.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeBounds:
    """The earliest valid event time, and how far in the future a time may be."""

    earliest_ns: int
    ahead_s: float

    def latest_ns(self, now_ns: int) -> int:
        """Return the latest valid event time at `now_ns`."""
        return now_ns + round(self.ahead_s * _SECOND_NS)

    def objection(self, field: str, time_ns: int, now_ns: int) -> str:
        """Return the reason why a time out of range is refused."""
        latest_ns = self.latest_ns(now_ns)
        for unit, factor in _UNITS_NS.items():
            if self.earliest_ns <= time_ns * factor <= latest_ns:
                return (
                    f"{field}: {time_ns} looks like {unit}; send nanoseconds since 1970-01-01 UTC"
                )
        return (
            f"{field}: {time_ns} is {_shown(time_ns)}, not a time from {_shown(self.earliest_ns)} "
            f"to {self.ahead_s:g} s from now; send nanoseconds since 1970-01-01 UTC"
        )


def _shown(time_ns: int) -> str:
    """Return a time as ISO 8601 text, to the second."""
    return f"{datetime.fromtimestamp(time_ns // _SECOND_NS, UTC):%Y-%m-%dT%H:%M:%SZ}"
