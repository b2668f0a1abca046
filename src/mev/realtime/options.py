"""Options that a client requests for a subscription: selection, delivery, and where to start."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from mev.bus.kafka import Position
from mev.wire.filters import Filter

_SHOWN = 512


class OnSlow(StrEnum):
    """Policy for the queue of a slow client."""

    DROP_OLDEST = "drop_oldest"
    """The oldest queued events are dropped and counted."""
    CONFLATE = "conflate"
    """Only the newest event of each key is queued; the others are dropped and counted."""
    LOSSLESS = "lossless"
    """All events are queued; if there are too many, the connection is closed with a cursor."""


class DeliveryMode(StrEnum):
    """Delivery of frames."""

    STREAM = "stream"
    DATAGRAM = "datagram"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionOptions:
    """Selection and delivery of events; `max_rate` is in events per second."""

    topics: frozenset[str]
    filter: Filter
    on_slow: OnSlow = OnSlow.DROP_OLDEST
    max_rate: int | None = None
    delivery: DeliveryMode = DeliveryMode.STREAM

    @property
    def keys(self) -> int:
        """Number of values in the filter's lists."""
        return sum(
            len(condition.value)
            for condition in self.filter.conditions
            if isinstance(condition.value, tuple)
        )

    def shown_filter(self) -> list[str]:
        """Return the filter's conditions for display, truncated if they are long."""
        return [
            text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..." for text in self.filter.text()
        ]


@dataclass(frozen=True, slots=True)
class Live:
    """Start with events published from now on."""


@dataclass(frozen=True, slots=True)
class Earliest:
    """Start with the oldest events in the log."""


@dataclass(frozen=True, slots=True)
class AtTime:
    """Start with events published at or after a time."""

    time_ms: int


@dataclass(frozen=True, slots=True)
class AtSlot:
    """Start with events of a slot or later ones."""

    slot: int


@dataclass(frozen=True, slots=True)
class AtCursor:
    """Start at a cursor: the next offsets by Kafka topic and partition.

    `log` is the fingerprint of their log, None if unknown.
    """

    positions: Mapping[Position, int]
    log: int | None


Past = Earliest | AtTime | AtSlot | AtCursor
Start = Live | Past
