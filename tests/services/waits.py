"""Waits on conditions. The time limit restarts whenever the observed value changes.

So a slow machine does not fail a test as long as something goes on. `MEV_TEST_WAIT_S` sets the
limit; tests do not set it themselves.
"""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx

T = TypeVar("T")
LIMIT_S = float(os.environ.get("MEV_TEST_WAIT_S", "100"))
_PAUSE_S = 0.01
_DOCUMENT_PAUSE_S = 0.05
_SHOWN = 4000


def until(
    observe: Callable[[], T],
    holds: Callable[[T], object] = bool,
    what: str = "the condition does not hold",
    *,
    pause_s: float = _PAUSE_S,
) -> T:
    """Return the value of `observe` as soon as it `holds`; block until then.

    :raises AssertionError: when the value does not change for :data:`LIMIT_S`.
    """
    limit = _Limit(what)
    while not holds(value := observe()):
        limit.check(value)
        time.sleep(pause_s)
    return value


async def until_async(
    observe: Callable[[], T],
    holds: Callable[[T], object] = bool,
    what: str = "the condition does not hold",
) -> T:
    """Return the value of `observe` as soon as it `holds`; the event loop runs meanwhile.

    :raises AssertionError: when the value does not change for :data:`LIMIT_S`.
    """
    limit = _Limit(what)
    while not holds(value := observe()):
        limit.check(value)
        await asyncio.sleep(_PAUSE_S)
    return value


def until_document(http: httpx.Client, path: str, holds: Callable[[Any], object]) -> Any:
    """Return the JSON document behind `path` as soon as it `holds`."""

    def read() -> Any:
        return http.get(path).raise_for_status().json()

    return until(read, holds, f"{path} does not become as expected", pause_s=_DOCUMENT_PAUSE_S)


class _Limit:
    """Time limit that restarts when the value changes."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._seen = ""
        self._since_s = 0.0

    def check(self, value: object) -> None:
        now_s, seen = time.monotonic(), repr(value)
        if seen != self._seen:
            self._seen, self._since_s = seen, now_s
        assert now_s - self._since_s < LIMIT_S, (
            f"{self._what}, and nothing changed for {LIMIT_S:g} s; last: {seen[:_SHOWN]}"
        )
