"""Levels: orders by scope, the lease, and the latched step-down, as pure functions of time."""

from collections.abc import Mapping, Sequence
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
    """A level with an end."""

    level: Level
    until_ns: int


@dataclass(frozen=True, slots=True)
class ScopeLevels:
    """Ordered levels of one scope: a lasting one, and temporary ones with the newest last."""

    lasting: Level | None = None
    temporary: tuple[Temporary, ...] = ()

    def level(self, now_ns: int) -> Level | None:
        """Return the active level, or None."""
        return next(
            (one.level for one in reversed(self.temporary) if now_ns < one.until_ns), self.lasting
        )

    def lowered(self, level: Level, until_ns: int) -> "ScopeLevels":
        """Return the order with an additional temporary level."""
        # A temporary level that ends before the new one has no effect any more.
        kept = [one for one in self.temporary if one.until_ns > until_ns]
        while len(kept) >= _MAX_TEMPORARY:
            first, second = kept.pop(0), kept.pop(0)
            kept.insert(
                0, Temporary(min(first.level, second.level), max(first.until_ns, second.until_ns))
            )
        return replace(self, temporary=(*kept, Temporary(level, until_ns)))


@dataclass(frozen=True, slots=True)
class Lease:
    """Permission to trade; `expires_at_ns` is None until the first lease after a start."""

    version: tuple[int, int] = (0, 0)
    expires_at_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Latch:
    """A step-down that lasts until a newer order raises it; `since_ns` is the lease's expiry."""

    level: Level
    since_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLimits:
    """Time limits of leases and snapshots."""

    skew_s: float = 2.0
    reduce_after_s: float = 30.0
    halt_after_s: float = 120.0
    max_lease_s: float = 300.0
    snapshot_max_age_s: float = 60.0


@dataclass(frozen=True, slots=True)
class EffectiveLevel:
    """The effective level, the ordered level, and the reason for a difference."""

    level: Level
    ordered: Level
    stepped_down: str = ""


def ordered_level(orders: Mapping[str, ScopeLevels], now_ns: int) -> Level:
    """Return the lowest ordered level.

    Without an order for all agents it is HALTED; a narrower scope without an order adds no limit.
    """
    levels = [level for order in orders.values() if (level := order.level(now_ns)) is not None]
    everyone = orders.get(EVERYONE, ScopeLevels()).level(now_ns)
    return min(levels) if everyone is not None else Level.HALTED


def latch(lease: Lease, latched: Latch | None, limits: LeaseLimits, now_ns: int) -> Latch | None:
    """Return the latch after the lease: lowered once the lease has expired, never raised."""
    if lease.expires_at_ns is None or now_ns < lease.expires_at_ns:
        return latched
    level = _after(now_ns - lease.expires_at_ns, limits)
    if latched is None:
        return Latch(level, lease.expires_at_ns)
    return Latch(min(level, latched.level), max(latched.since_ns, lease.expires_at_ns))


def standing(
    orders: Mapping[str, ScopeLevels],
    lease: Lease,
    latched: Latch | None,
    limits: LeaseLimits,
    now_ns: int,
) -> EffectiveLevel:
    """Return the effective level at `now_ns`."""
    ordered = ordered_level(orders, now_ns)
    if lease.expires_at_ns is None:
        return EffectiveLevel(
            Level.HALTED,
            ordered,
            "" if ordered == Level.HALTED else "no lease since the agent started",
        )
    latched = latch(lease, latched, limits, now_ns)
    if latched is None or latched.level >= ordered:
        return EffectiveLevel(ordered, ordered)
    why = (
        f"the lease ran out at {_text(latched.since_ns)}; a newer level command that people "
        "approved raises it again"
    )
    return EffectiveLevel(latched.level, ordered, why)


def without_policies(found: EffectiveLevel, missing: Sequence[str]) -> EffectiveLevel:
    """Return the effective level with policies of the types `missing`: at most NO_NEW."""
    if not missing or found.level <= Level.NO_NEW:
        return found
    return replace(
        found,
        level=Level.NO_NEW,
        stepped_down=f"policy_missing: no enabled policy of type {', '.join(missing)} is in force",
    )


def next_change_ns(
    orders: Mapping[str, ScopeLevels], lease: Lease, limits: LeaseLimits, now_ns: int
) -> int | None:
    """Return the time of the next change of the level that time alone causes."""
    times = [one.until_ns for order in orders.values() for one in order.temporary]
    if lease.expires_at_ns is not None:
        waits = (0.0, limits.reduce_after_s, limits.halt_after_s)
        times += [lease.expires_at_ns + round(wait * _SECOND_NS) for wait in waits]
    return min((time for time in times if time > now_ns), default=None)


def _after(age_ns: int, limits: LeaseLimits) -> Level:
    if age_ns >= limits.halt_after_s * _SECOND_NS:
        return Level.HALTED
    return Level.REDUCING if age_ns >= limits.reduce_after_s * _SECOND_NS else Level.NO_NEW


def _text(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / _SECOND_NS, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
