"""Time window of a query, divided into steps."""

import re
from dataclasses import dataclass
from datetime import datetime

from mev.core.clock import check_time, to_ns
from mev.core.errors import InvalidInputError

MAX_STEPS = 500
_DEFAULT_STEPS = 100
_DEFAULT_NS = 3_600_000_000_000
_SECOND_NS = 1_000_000_000
_LAST_NS = 2**63 - 1
_NS_TEXT = re.compile(r"[0-9]{1,19}")


class InvalidStatsQueryError(InvalidInputError):
    """A query parameter is invalid."""

    code = "invalid_query"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeWindow:
    """Half-open time window from `from_ns` to `to_ns`, in steps of `step_s` that begin at it."""

    from_ns: int
    to_ns: int
    step_s: int

    @property
    def step_ns(self) -> int:
        """Length of a step."""
        return self.step_s * _SECOND_NS

    @property
    def steps(self) -> int:
        """Number of steps; the last one may be shorter."""
        return _divide(self.to_ns - self.from_ns, self.step_ns)

    @property
    def times_ns(self) -> list[int]:
        """Start of each step."""
        return list(range(self.from_ns, self.to_ns, self.step_ns))


def window(start: str | None, end: str | None, step_s: int | None, *, now_ns: int) -> TimeWindow:
    """Return the window of the parameters `from`, `to` and `step_s`.

    By default it is the last hour before `to`, `to` is now, and there are at most 100 steps.

    :raises InvalidStatsQueryError: naming the parameter.
    """
    to_ns = now_ns if end is None else _time_ns("to", end)
    from_ns = max(0, to_ns - _DEFAULT_NS) if start is None else _time_ns("from", start)
    length_ns = to_ns - from_ns
    if length_ns <= 0:
        raise InvalidStatsQueryError("from: not before to", parameter="from")
    if step_s is None:
        step_s = _divide(length_ns, _DEFAULT_STEPS * _SECOND_NS)
    if (steps := _divide(length_ns, step_s * _SECOND_NS)) > MAX_STEPS:
        raise InvalidStatsQueryError(
            f"step_s: {steps} steps in the window, and {MAX_STEPS} are allowed; use step_s of at "
            f"least {_divide(length_ns, MAX_STEPS * _SECOND_NS)}",
            parameter="step_s",
        )
    return TimeWindow(from_ns=from_ns, to_ns=to_ns, step_s=step_s)


def _divide(dividend: int, divisor: int) -> int:
    """Return the quotient, rounded up."""
    return -(-dividend // divisor)


def _time_ns(parameter: str, text: str) -> int:
    try:
        return _parse_time(text)
    except (ValueError, OverflowError):
        raise InvalidStatsQueryError(
            f"{parameter}: {text[:40]!r} is not a time; write nanoseconds since 1970, or a time "
            "with its offset from UTC such as 2026-01-31T12:00:00Z",
            parameter=parameter,
        ) from None


def _parse_time(text: str) -> int:
    if _NS_TEXT.fullmatch(text):
        if int(text) > _LAST_NS:
            raise ValueError("more than 64 bits")
        return int(text)
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("no offset from UTC")
    return to_ns(check_time(time))
