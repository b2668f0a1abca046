"""What an agent may do: levels ordered by scope, the lease, and the step-down that latches. Pure functions of a given time."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import IntEnum

EVERYONE = "level:all"
_MAX_TEMPORARY = 8
_SECOND_NS = 1_000_000_000


class Level(IntEnum):
    """A higher level may do more; cancels and exits are always allowed."""

    HALTED = 1
    REDUCING = 2
    NO_NEW = 3
    ACTIVE = 4


@dataclass(frozen=True, slots=True)
class Temporary:
    """A level that ends by itself."""

    level: Level
    until_ns: int


@dataclass(frozen=True, slots=True)
class Order:
    """What is ordered for one scope: a lasting level, and temporary ones on top of it, the newest last."""

    lasting: Level | None = None
    temporary: tuple[Temporary, ...] = ()

    def level(self, now_ns: int) -> Level | None:
        """Return the level in force, if there is one."""
        return next((one.level for one in reversed(self.temporary) if now_ns < one.until_ns), self.lasting)

    def lowered(self, level: Level, until_ns: int) -> "Order":
        """Return this order with a temporary level on top."""
        # What ends before the new one does can never be seen again.
        kept = [one for one in self.temporary if one.until_ns > until_ns]
        while len(kept) >= _MAX_TEMPORARY:
            first, second = kept.pop(0), kept.pop(0)
            kept.insert(0, Temporary(min(first.level, second.level), max(first.until_ns, second.until_ns)))
        return replace(self, temporary=(*kept, Temporary(level, until_ns)))


@dataclass(frozen=True, slots=True)
class Lease:
    """Permission to trade. Without `expires_at_ns` none was received since the agent began."""

    version: tuple[int, int] = (0, 0)
    expires_at_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Latch:
    """A step-down that stays until a newer order raises it. `since_ns` is when the lease ran out."""

    level: Level
    since_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How patient an agent is."""

    skew_s: float = 2.0
    reduce_after_s: float = 30.0
    halt_after_s: float = 120.0
    max_lease_s: float = 300.0
    snapshot_max_age_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Standing:
    """The level in force, the level ordered, and why they differ when they do."""

    level: Level
    ordered: Level
    stepped_down: str = ""


def ordered_level(orders: Mapping[str, Order], now_ns: int) -> Level:
    """Return the lowest ordered level. Without an order for everyone nothing is allowed; a narrower scope without one adds no limit."""
    levels = [level for order in orders.values() if (level := order.level(now_ns)) is not None]
    everyone = orders.get(EVERYONE, Order()).level(now_ns)
    return min(levels) if everyone is not None else Level.HALTED


def latch(lease: Lease, latched: Latch | None, limits: Limits, now_ns: int) -> Latch | None:
    """Return the latch as the lease leaves it: lowered while the lease has run out, never raised."""
    if lease.expires_at_ns is None or now_ns < lease.expires_at_ns:
        return latched
    level = _after(now_ns - lease.expires_at_ns, limits)
    if latched is None:
        return Latch(level, lease.expires_at_ns)
    return Latch(min(level, latched.level), max(latched.since_ns, lease.expires_at_ns))


def standing(orders: Mapping[str, Order], lease: Lease, latched: Latch | None, limits: Limits, now_ns: int) -> Standing:
    """Return what the agent may do at `now_ns`."""
    ordered = ordered_level(orders, now_ns)
    if lease.expires_at_ns is None:
        return Standing(Level.HALTED, ordered, "" if ordered == Level.HALTED else "no lease since the agent started")
    latched = latch(lease, latched, limits, now_ns)
    if latched is None or latched.level >= ordered:
        return Standing(ordered, ordered)
    why = f"the lease ran out at {_text(latched.since_ns)}; a newer level command that people approved raises it again"
    return Standing(latched.level, ordered, why)


def next_change_ns(orders: Mapping[str, Order], lease: Lease, limits: Limits, now_ns: int) -> int | None:
    """Return when the level may change by itself next."""
    times = [one.until_ns for order in orders.values() for one in order.temporary]
    if lease.expires_at_ns is not None:
        waits = (0.0, limits.reduce_after_s, limits.halt_after_s)
        times += [lease.expires_at_ns + round(wait * _SECOND_NS) for wait in waits]
    return min((time for time in times if time > now_ns), default=None)


def _after(age_ns: int, limits: Limits) -> Level:
    if age_ns >= limits.halt_after_s * _SECOND_NS:
        return Level.HALTED
    return Level.REDUCING if age_ns >= limits.reduce_after_s * _SECOND_NS else Level.NO_NEW


def _text(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / _SECOND_NS, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
