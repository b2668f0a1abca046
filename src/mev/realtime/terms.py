"""What a subscription asks for."""

from dataclasses import dataclass
from enum import StrEnum

from mev.wire.filters import Filter

_SHOWN = 512


class OnSlow(StrEnum):
    """What happens to the events of a client that is behind."""

    DROP_OLDEST = "drop_oldest"
    """The oldest that wait are dropped, and counted."""
    CONFLATE = "conflate"
    """Of each key only the newest waits; the others are dropped, and counted."""
    LOSSLESS = "lossless"
    """All wait; when there are too many, the connection is closed with the cursor to resume from."""


class Delivery(StrEnum):
    """How frames travel."""

    STREAM = "stream"
    DATAGRAM = "datagram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Which events, and how. `max_rate` is in events a second."""

    topics: frozenset[str]
    filter: Filter
    on_slow: OnSlow = OnSlow.DROP_OLDEST
    max_rate: int | None = None
    delivery: Delivery = Delivery.STREAM

    @property
    def keys(self) -> int:
        """Values in the filter's lists."""
        return sum(len(condition.value) for condition in self.filter.conditions if isinstance(condition.value, tuple))

    def shown_filter(self) -> list[str]:
        """Return the filter's conditions for people: a large key set is cut."""
        return [text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..." for text in self.filter.text()]
