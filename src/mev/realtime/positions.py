"""Positions in the log: cursors, where a subscription starts, and what the log still has."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from mev.bus.kafka import Position
from mev.bus.replay import OffsetRange, Replay
from mev.realtime.options import AtCursor, AtSlot, AtTime, Past
from mev.wire.registry import BY_TOPIC, EventType
from mev.wire.resume import fingerprint

_T = TypeVar("_T")
Positions = Mapping[Position, int]


def cursor(
    positions: Mapping[Position, _T], kafka_topics: Iterable[str]
) -> dict[str, dict[str, _T]]:
    """Return the values of the partitions of `kafka_topics`, by event type and partition."""
    found: dict[str, dict[str, _T]] = {topic: {} for topic in kafka_topics}
    for (topic, partition), value in positions.items():
        if topic in found:
            found[topic][str(partition)] = value
    return {BY_TOPIC[topic].name: partitions for topic, partitions in found.items()}


class StartOutcome(StrEnum):
    """Outcome of a requested start."""

    LIVE = "live"
    RESUMED = "resumed"
    GAP = "gap"
    """Some of the requested events are deleted: see the gaps."""
    RESET = "reset"
    """The cursor is of another log: starts with the earliest events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """Start of a subscription: `positions` of every partition, and deleted ranges.

    `gaps` are deleted offsets [from, to).
    """

    outcome: StartOutcome
    positions: dict[Position, int]
    gaps: dict[Position, tuple[int, int]] = field(default_factory=dict)
    bounds: dict[Position, OffsetRange] = field(default_factory=dict)


def find_start(start: Past, types: Iterable[EventType], replay: Replay, log: str) -> Beginning:
    """Return the positions of `start` in the topics of `types`; blocks.

    :raises BrokerUnavailableError: if the brokers do not answer.
    """
    by_topic = {type_.topic: type_ for type_ in types}
    bounds = replay.bounds(by_topic)
    earliest = {at: bound.earliest for at, bound in bounds.items()}
    match start:
        case AtCursor(wanted, of_log):
            return _resume(wanted, bounds, same_log=of_log in (None, fingerprint(log)))
        case AtTime(time_ms):
            found = replay.first_since(time_ms, bounds)
        case AtSlot(slot):
            found = {
                at: replay.first_where(at, bound, _Slots(by_topic[at[0]], slot))
                for at, bound in bounds.items()
            }
        case _:
            found = earliest
    return Beginning(outcome=StartOutcome.RESUMED, positions=found, bounds=bounds)


def _resume(
    wanted: Mapping[Position, int], bounds: dict[Position, OffsetRange], *, same_log: bool
) -> Beginning:
    earliest = {at: bound.earliest for at, bound in bounds.items()}
    known = {at: offset for at, offset in wanted.items() if at in bounds}
    if (
        not same_log
        or any(offset > bounds[at].latest for at, offset in known.items())
        or len(known) < len(wanted)
    ):
        return Beginning(outcome=StartOutcome.RESET, positions=earliest, bounds=bounds)
    gaps = {at: (offset, earliest[at]) for at, offset in known.items() if offset < earliest[at]}
    positions = {at: max(first, known.get(at, first)) for at, first in earliest.items()}
    return Beginning(
        outcome=StartOutcome.GAP if gaps else StartOutcome.RESUMED,
        positions=positions,
        gaps=gaps,
        bounds=bounds,
    )


class _Slots:
    """Returns whether an event has a slot at or after `slot`; invalid events count as earlier."""

    def __init__(self, type_: EventType, slot: int) -> None:
        self._parse: Callable[[bytes], Any] = type_.message.FromString
        self._slot = slot

    def __call__(self, value: bytes) -> bool:
        try:
            return bool(self._parse(value).slot >= self._slot)
        except DecodeError:
            return False
