"""Detection of stalled partitions: the brokers have more, but the committed offset is unchanged.

Offsets of lost messages do not count as more.
"""

import logging
import threading
from collections.abc import Callable, Mapping
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

    A partition is stalled after `stall_s` without progress. `without_messages` returns those of
    the given positions behind which there is none.
    """

    def __init__(
        self,
        ask: Callable[[], Offsets],
        without_messages: Callable[[Mapping[Position, int]], frozenset[Position]],
        *,
        stall_s: float,
    ) -> None:
        self.still: frozenset[Position] = frozenset()
        self.stuck: frozenset[Position] = frozenset()
        """Partitions without progress since the last intervention for them."""
        self._ask = ask
        self._without_messages = without_messages
        self._committed: dict[Position, int] = {}
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

    def forget(self, stalled: frozenset[Position]) -> None:
        """Reset the counts, after an intervention for `stalled`."""
        self._progress = PartitionProgress()
        self.still = frozenset()
        self.stuck |= stalled

    def _run(self) -> None:
        while not self._closing.wait(self._pause_s):
            progress = self._progress
            try:
                offsets = self._ask()
                progress.take(offsets)
                empty = self._empty(offsets, progress.still() | self.stuck)
            except BrokerUnavailableError as error:
                LOG.debug("cannot check whether the sink is stalled: %s", error)
                continue
            if progress is self._progress:
                self.still = progress.still() - empty
            self._release(offsets, empty)

    def _release(self, offsets: Offsets, empty: frozenset[Position]) -> None:
        """Remove from `stuck` what moved on, and what has nothing to read."""
        behind = {at: done for at, (_, latest, done) in offsets.items() if done < latest}
        moved = {at for at in self.stuck if behind.get(at) != self._committed.get(at)}
        self.stuck -= empty | moved | (self.stuck - behind.keys())
        self._committed = behind

    def _empty(self, offsets: Offsets, suspects: frozenset[Position]) -> frozenset[Position]:
        positions = {at: offsets[at][2] for at in suspects if at in offsets}
        return self._without_messages(positions) if positions else frozenset()
