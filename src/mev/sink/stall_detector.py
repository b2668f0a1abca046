"""Detection of stalled partitions: the brokers have more, but the committed offset is unchanged."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from mev.bus.group import Offsets
from mev.bus.kafka import BrokerUnavailableError, Position

LOG = logging.getLogger(__name__)
_LOOKS = 4  # consecutive answers without progress; a missing answer does not count


@dataclass(slots=True)
class PartitionProgress:
    """Committed offset of each partition with more to read, and how often it was unchanged."""

    seen: dict[Position, tuple[int, int]] = field(default_factory=dict)

    def take(self, offsets: Offsets) -> None:
        """Add the brokers' current offsets."""
        seen = {}
        for at, (_, latest, committed) in offsets.items():
            if committed < latest:
                before, times = self.seen.get(at, (-1, 0))
                seen[at] = committed, times + 1 if committed == before else 0
        self.seen = seen

    def still(self) -> frozenset[Position]:
        """Return the stalled partitions."""
        return frozenset(at for at, (_, times) in self.seen.items() if times >= _LOOKS)


class StallDetector:
    """Polls the brokers in its own thread; `still` is the set of stalled partitions.

    A partition is stalled after `stall_s` without progress.
    """

    def __init__(self, ask: Callable[[], Offsets], *, stall_s: float) -> None:
        self.still: frozenset[Position] = frozenset()
        self._ask = ask
        self._pause_s = stall_s / _LOOKS
        self._progress = PartitionProgress()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sink-watch", daemon=True)

    def start(self) -> None:
        """Start polling."""
        self._thread.start()

    def close(self) -> None:
        """Stop polling."""
        self._closing.set()

    def forget(self) -> None:
        """Reset the counts, after an intervention."""
        self._progress = PartitionProgress()
        self.still = frozenset()

    def _run(self) -> None:
        while not self._closing.wait(self._pause_s):
            progress = self._progress
            try:
                progress.take(self._ask())
            except BrokerUnavailableError as error:
                LOG.debug("cannot check whether the sink is stalled: %s", error)
                continue
            if progress is self._progress:
                self.still = progress.still()
