"""Whether the sink stands still, by the brokers' account: there is more to read, and the group's offset stays where it is."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from mev.bus.errors import BrokerUnavailableError
from mev.bus.kafka import Position
from mev.bus.offsets import Offsets

LOG = logging.getLogger(__name__)
_LOOKS = 4  # so many answers of the brokers in a row without progress; no answer is no evidence


@dataclass(slots=True)
class Progress:
    """What was seen of each partition that has more to read: its committed offset, and how often it was the same."""

    seen: dict[Position, tuple[int, int]] = field(default_factory=dict)

    def take(self, offsets: Offsets) -> None:
        """Take what the brokers say now."""
        seen = {}
        for at, (_, latest, committed) in offsets.items():
            if committed < latest:
                before, times = self.seen.get(at, (-1, 0))
                seen[at] = committed, times + 1 if committed == before else 0
        self.seen = seen

    def still(self) -> frozenset[Position]:
        """Return the partitions that stand still."""
        return frozenset(at for at, (_, times) in self.seen.items() if times >= _LOOKS)


class Watch:
    """Asks the brokers from time to time, in a thread of its own; `still` are the partitions without progress for `stall_s`."""

    def __init__(self, ask: Callable[[], Offsets], *, stall_s: float) -> None:
        self.still: frozenset[Position] = frozenset()
        self._ask = ask
        self._pause_s = stall_s / _LOOKS
        self._progress = Progress()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sink-watch", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._closing.set()

    def forget(self) -> None:
        """Count from the beginning: something was done about it."""
        self._progress = Progress()
        self.still = frozenset()

    def _run(self) -> None:
        while not self._closing.wait(self._pause_s):
            progress = self._progress
            try:
                progress.take(self._ask())
            except BrokerUnavailableError as error:
                LOG.debug("not known whether the sink stands still: %s", error)
                continue
            if progress is self._progress:
                self.still = progress.still()
