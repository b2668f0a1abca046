"""Logging to standard error: one line per record, with its action.

Line breaks and control characters in messages are escaped, so that no message can imitate another
record. Each place in the code may log a limited number of records per minute; the next record says
how many were left out.
"""

import logging
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mev.core.text import shown
from mev.core.token_bucket import TokenBucket

# We report what these libraries log below these levels, once and with the remedy.
_LIBRARIES = {
    "uvicorn.error": logging.ERROR,  # its warnings are about client input, which metrics count
    "quic": logging.ERROR,  # aioquic logs every bad packet and handshake
    "http3": logging.ERROR,
    "httpx": logging.WARNING,
    "clickhouse_connect": logging.CRITICAL,
    "urllib3": logging.ERROR,
}


class RepeatFilter(logging.Filter):
    """Limits each place in the code to a burst of `per_minute` records, refilled at that rate.

    Debug records are not limited. `on_left_out` is called with the logger's name for each record
    left out.
    """

    def __init__(
        self,
        per_minute: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_left_out: Callable[[str], object] = lambda _: None,
    ) -> None:
        super().__init__()
        self._per_minute = per_minute
        self._clock = clock
        self._on_left_out = on_left_out
        self._lock = threading.Lock()
        self._places: dict[tuple[str, int], _Place] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write `record`; set its `left_out` to the number left out before it."""
        if record.levelno < logging.INFO:
            return True
        with self._lock:
            key = record.pathname, record.lineno
            place = self._places.get(key)
            if place is None:
                bucket = TokenBucket(self._per_minute / 60, self._per_minute, self._clock)
                place = self._places[key] = _Place(bucket)
            record.left_out = place.left_out
            passed = not place.bucket.take()
            place.left_out = 0 if passed else place.left_out + 1
        if not passed:
            self._on_left_out(record.name)
        return passed


@dataclass(slots=True)
class _Place:
    """Records that one place in the code may write now, and the number left out."""

    bucket: TokenBucket
    left_out: int = 0


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.action = getattr(record, "action", record.name)
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        record.message = shown(record.message).replace("\n", "\\n")
        left_out = getattr(record, "left_out", 0)
        if left_out:
            record.message += f" ({left_out} more like this were left out before it)"
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return textwrap.indent(shown(super().formatException(ei)), "  ", lambda _: True)


def configure(level: str, repeats: RepeatFilter, *, process: str = "") -> None:
    """Send records of `level` and above to standard error, filtered by `repeats`.

    Each starts with the name of the `process`, if it is one of several.
    """
    name = f"{process} " if process else ""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(repeats)
    handler.setFormatter(_Formatter(f"{name}%(asctime)s %(levelname)s %(action)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name, least in _LIBRARIES.items():
        logging.getLogger(name).setLevel(max(least, logging.getLevelName(level)))
