"""Where a subscription begins, and what is left of that place in the log."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from google.protobuf.message import DecodeError

from mev.bus.kafka import Position
from mev.bus.replay import Bounds, Replay
from mev.wire.registry import EventType


@dataclass(frozen=True, slots=True)
class Live:
    """What is published from now on."""


@dataclass(frozen=True, slots=True)
class Earliest:
    """Everything there still is."""


@dataclass(frozen=True, slots=True)
class AtTime:
    """What was published at or after a time."""

    time_ms: int


@dataclass(frozen=True, slots=True)
class AtSlot:
    """What belongs to a slot or a later one."""

    slot: int


@dataclass(frozen=True, slots=True)
class AtCursor:
    """What follows a cursor: the next offsets, by Kafka topic and partition, in the log called `log`."""

    positions: Mapping[Position, int]
    log: str | None


Past = Earliest | AtTime | AtSlot | AtCursor
Start = Live | Past


class Outcome(StrEnum):
    """What became of the wish to begin somewhere."""

    LIVE = "live"
    RESUMED = "resumed"
    GAP = "gap"
    """Some of what was asked for is gone: see the gaps."""
    RESET = "reset"
    """The cursor is of another log: it begins with the earliest there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """Where a subscription begins: `positions` for every partition; `gaps` are offsets [from, to) that are gone."""

    outcome: Outcome
    positions: dict[Position, int]
    gaps: dict[Position, tuple[int, int]] = field(default_factory=dict)
    bounds: dict[Position, Bounds] = field(default_factory=dict)


def find(start: Past, types: Iterable[EventType], replay: Replay, log: str) -> Beginning:
    """Return where `start` is in the topics of `types`. Blocks.

    :raises BrokerUnavailableError: when the brokers do not answer.
    """
    by_topic = {type_.topic: type_ for type_ in types}
    bounds = replay.bounds(by_topic)
    earliest = {at: bound.earliest for at, bound in bounds.items()}
    match start:
        case AtCursor(wanted, of_log):
            return _resume(wanted, bounds, same_log=of_log in (None, log))
        case AtTime(time_ms):
            found = {at: replay.first_where(at, bound, lambda published_ms, _: published_ms >= time_ms) for at, bound in bounds.items()}
        case AtSlot(slot):
            found = {at: replay.first_where(at, bound, _Slots(by_topic[at[0]], slot)) for at, bound in bounds.items()}
        case _:
            found = earliest
    return Beginning(outcome=Outcome.RESUMED, positions=found, bounds=bounds)


def _resume(wanted: Mapping[Position, int], bounds: dict[Position, Bounds], *, same_log: bool) -> Beginning:
    earliest = {at: bound.earliest for at, bound in bounds.items()}
    known = {at: offset for at, offset in wanted.items() if at in bounds}
    if not same_log or any(offset > bounds[at].latest for at, offset in known.items()) or len(known) < len(wanted):
        return Beginning(outcome=Outcome.RESET, positions=earliest, bounds=bounds)
    gaps = {at: (offset, earliest[at]) for at, offset in known.items() if offset < earliest[at]}
    positions = {at: max(first, known.get(at, first)) for at, first in earliest.items()}
    return Beginning(outcome=Outcome.GAP if gaps else Outcome.RESUMED, positions=positions, gaps=gaps, bounds=bounds)


class _Slots:
    """Tells whether an event is of a slot or a later one; what cannot be decoded is taken for earlier."""

    def __init__(self, type_: EventType, slot: int) -> None:
        self._parse: Callable[[bytes], Any] = type_.message.FromString
        self._slot = slot

    def __call__(self, _: int, value: bytes) -> bool:
        try:
            return bool(self._parse(value).slot >= self._slot)
        except DecodeError:
            return False
