"""The batching window: one timer for all groups, armed only while something waits."""

import asyncio
from typing import Protocol

_SLACK_S = 0.001


class Flushable(Protocol):
    """Something with a batch that should leave when its time has come."""

    def flush(self) -> None:
        """Send what waits."""


class Window:
    """Flush each pending group when its window ends.

    All windows are equally long, so the order in which they were opened is the order in which they end.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._deadlines: dict[Flushable, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def resize(self, window_s: float) -> None:
        """Make every window that opens from now on `window_s` long."""
        self._window_s = window_s

    def open(self, group: Flushable) -> None:
        """Start the window of `group`, unless it is open."""
        loop = asyncio.get_running_loop()
        if group not in self._deadlines:
            self._deadlines[group] = loop.time() + self._window_s
        if self._timer is None:
            self._timer = loop.call_at(next(iter(self._deadlines.values())), self._fire)

    def shut(self, group: Flushable) -> None:
        """Forget the window of `group`: it has been flushed."""
        self._deadlines.pop(group, None)

    def close(self) -> None:
        """Stop the timer; what waits is not sent."""
        self._deadlines.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        # Groups that are due within the slack go along: one wake-up instead of several.
        due = loop.time() + _SLACK_S
        for group in [group for group, deadline in self._deadlines.items() if deadline <= due]:
            self.shut(group)
            group.flush()
        if self._deadlines and self._timer is None:
            self._timer = loop.call_at(next(iter(self._deadlines.values())), self._fire)
