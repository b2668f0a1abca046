"""The rate of each principal, counted in Redis for all processes together.

Asking Redis for every request would cost more than most requests. So a process takes tokens a tenth of a second's worth at a time
and spends them on its own; what it does not spend within a second it drops, by when the bucket has filled up by more. While Redis is
away each process counts for itself.
"""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from mev.limits.bucket import Buckets, Rate
from mev.store.redis import Redis, RedisUnavailableError, Script

_LEASE_S = 1.0
_SHARE_S = 0.1
_ENTRIES = 50_000
# Gives up to the wanted number of tokens; returns them, what is left, and in how many milliseconds there is one again.
_TAKE = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local rate, burst, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local kept = redis.call('HMGET', KEYS[1], 'level', 'at')
local level = tonumber(kept[1]) or burst
level = math.min(burst, level + math.max(0, now - (tonumber(kept[2]) or now)) * rate / 1000)
local granted = math.min(wanted, math.floor(level))
level = level - granted
redis.call('HSET', KEYS[1], 'level', string.format('%.3f', level), 'at', string.format('%.3f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(burst / rate * 1000) + 1000)
return {granted, math.floor(level), math.ceil(math.max(0, 1 - level) * 1000 / rate)}
""")


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a request goes on, and what its sender is told: requests left, seconds until all are back, seconds to wait."""

    allowed: bool
    remaining: int
    reset_s: int
    retry_after_s: int = 0


class _Lease:
    """What this process holds of one bucket."""

    __slots__ = ("ends", "left", "lock", "refused_until", "shared")

    def __init__(self) -> None:
        self.left = 0
        self.ends = 0.0
        self.shared = 0
        self.refused_until = 0.0
        self.lock = asyncio.Lock()


class RateLimiter:
    """Counts requests by name against one rate."""

    def __init__(self, redis: Redis, rate: Rate, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._redis = redis
        self._clock = clock
        self._local = Buckets(rate, _ENTRIES)
        self._leases: dict[str, _Lease] = {}
        self._portion = max(1, int(min(rate.per_s, rate.burst) * _SHARE_S))
        self.alone = False
        """Whether this process counts for itself because Redis is away."""

    def take_now(self, name: str) -> Decision | None:
        """Decide at once if what is held allows; None: ask :meth:`take`."""
        lease = self._leases.get(name)
        return None if lease is None else self._spend(lease, self._clock())

    async def take(self, name: str) -> Decision:
        """Decide."""
        lease = self._lease(name)
        async with lease.lock:  # of many that wait, the first asks Redis for all
            decision = self._spend(lease, self._clock())
            if decision is not None:
                return decision
            try:
                granted, lease.shared, wait_ms = await self._redis.run(
                    _TAKE, [f"mev:rate:{name}"], self.rate.per_s, self.rate.burst, self._portion
                )
            except RedisUnavailableError:
                self.alone = True
                return self._take_alone(name)
            self.alone = False
            now = self._clock()
            lease.left, lease.ends = int(granted), now + _LEASE_S
            if not lease.left:
                lease.refused_until = now + wait_ms / 1000
            decision = self._spend(lease, now)
            return decision or Decision(allowed=False, remaining=0, reset_s=self._reset_s(0), retry_after_s=1)

    def _spend(self, lease: _Lease, now: float) -> Decision | None:
        if now < lease.refused_until:
            return Decision(False, 0, self._reset_s(0), math.ceil(lease.refused_until - now))
        if not lease.left or now >= lease.ends:
            return None
        lease.left -= 1
        remaining = lease.left + lease.shared
        return Decision(True, remaining, self._reset_s(remaining))

    def _take_alone(self, name: str) -> Decision:
        now = self._clock()
        wait_s = self._local.take(name, now)
        remaining = int(self._local.level(name, now))
        return Decision(not wait_s, remaining, self._reset_s(remaining), math.ceil(wait_s))

    def _reset_s(self, remaining: int) -> int:
        return math.ceil((self.rate.burst - remaining) / self.rate.per_s)

    def _lease(self, name: str) -> _Lease:
        lease = self._leases.get(name)
        if lease is None:
            while len(self._leases) >= _ENTRIES:
                del self._leases[next(iter(self._leases))]
            lease = self._leases[name] = _Lease()
        return lease
