"""Count refused control requests and record them once per period.

Repeated requests raise a count and do not fill the disk: each period has one record for each
sender, route and status, up to a limit, and one for all others together. One sender cannot use up
the limit, so a flood does not hide the requests of others.
"""

import asyncio
from collections import Counter
from typing import NamedTuple, Protocol

from prometheus_client import Counter as Metric

from mev.core.asgi import Sender

REFUSED = Metric("mev_control_refused_total", "Requests to control that were refused.", ["status"])
PERIOD_S = 10.0
_MOST_KINDS = 100
_MOST_OF_ONE = 20


class Recorder(Protocol):
    """Records an entry without waiting."""

    def record_later(
        self,
        actor: str,
        action: str,
        object: str,  # noqa: A002 - the field's name
        outcome: str = "ok",
        details: dict[str, object] | None = None,
        *,
        session: str = "",
        remote: str = "",
    ) -> None:
        """Record an entry."""


class _Attempt(NamedTuple):
    sender: Sender
    route: str
    status: int


class Attempts:
    """Refused requests of the current period."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._counts: Counter[_Attempt] = Counter()
        self._kinds: Counter[str] = Counter()
        """By actor; all who do not say who they are count as one."""
        self._others = 0

    def add(self, sender: Sender, method: str, route: str, status: int) -> None:
        """Count a request of `sender` that was answered with `status`."""
        REFUSED.labels(status).inc()
        attempt = _Attempt(sender, f"{method} {route}", status)
        is_new = attempt not in self._counts
        if is_new and (
            len(self._counts) >= _MOST_KINDS or self._kinds[sender.actor] >= _MOST_OF_ONE
        ):
            self._others += 1
            return
        self._counts[attempt] += 1
        self._kinds[sender.actor] += is_new

    def flush(self) -> None:
        """Record the counts and reset them."""
        counts, self._counts = self._counts, Counter()
        others, self._others = self._others, 0
        self._kinds.clear()
        for (sender, route, status), count in counts.items():
            self._recorder.record_later(
                sender.actor,
                "control.refused",
                route,
                str(status),
                {"count": count},
                session=sender.session,
                remote=sender.remote,
            )
        if others:
            self._recorder.record_later(
                "several", "control.refused", "several", "refused", {"count": others}
            )

    async def run(self) -> None:
        """Record the counts once per period and on cancellation."""
        try:
            while True:
                await asyncio.sleep(PERIOD_S)
                self.flush()
        finally:
            self.flush()
