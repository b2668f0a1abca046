"""Detection of partitions whose messages do not arrive, for example since none can be parsed."""

import logging
import time
from collections.abc import Callable

from prometheus_client import Counter

from mev.bus.kafka import Position

STUCK_S = 30.0
LOG = logging.getLogger(__name__)
STUCK = Counter(
    "mev_bus_stuck_total",
    "Times a partition had messages, but none of them arrived for 30 s.",
    ["topic"],
)


class ReadProgress:
    """Logs and counts each partition that has messages of which none arrives for `stuck_s`.

    Belongs to one thread.
    """

    def __init__(
        self, *, stuck_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stuck_s = STUCK_S if stuck_s is None else stuck_s
        self._clock = clock
        self._behind: dict[Position, tuple[int, float]] = {}
        self._stuck: set[Position] = set()

    def note(self, at: Position, next_offset: int, end: int) -> None:
        """Add that `next_offset` is to be read next, and `end` is the end of the partition."""
        before = self._behind.get(at)
        if next_offset >= end or before is None or before[0] != next_offset:
            self._stuck.discard(at)
            self._behind[at] = next_offset, self._clock()
            return
        if next_offset < end and at not in self._stuck:
            if self._clock() - before[1] < self._stuck_s:
                return
            self._stuck.add(at)
            STUCK.labels(at[0]).inc()
            LOG.error(
                "%s[%d]: offsets %d to %d are published, but no message arrived for %g s: they "
                "were lost in a power failure, or a message cannot be parsed",
                *at,
                next_offset,
                end - 1,
                self._stuck_s,
                extra={"action": "reading_stuck"},
            )
