"""Rate limits per principal, counted in Redis across all processes.

Asking Redis for every request would cost more than most requests. A process therefore leases the
tokens of a tenth of a second and spends them locally; it drops unspent ones after a second, when
the bucket has refilled by more. While Redis is unavailable, each process counts on its own.
"""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from mev.core.token_bucket import TokenBucket
from mev.store.redis import Redis, RedisUnavailableError, Script

_LEASE_S = 1.0
_SHARE_S = 0.1
_ENTRIES = 50_000
# Grants up to the wanted tokens; returns them, the level, and the ms until the next token.
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
class Rate:
    """Tokens per second, and the bucket size."""

    per_s: float
    burst: int


class Buckets:
    """Buckets of one rate.

    Above `capacity`, the least recently used buckets are removed, which makes them full again.
    """

    def __init__(
        self,
        rate: Rate,
        capacity: int = 50_000,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rate = rate
        self._capacity = capacity
        self._clock = clock
        self._buckets: dict[str, TokenBucket] = {}

    def level(self, name: str) -> float:
        """Return the number of tokens in a bucket."""
        bucket = self._buckets.get(name)
        return self.rate.burst if bucket is None else bucket.level()

    def take(self, name: str, cost: float = 1) -> float:
        """Take tokens and return 0, or take none and return the seconds until there are enough."""
        bucket = self._buckets.pop(name, None)
        if bucket is None:
            bucket = TokenBucket(self.rate.per_s, self.rate.burst, self._clock)
        self._buckets[name] = bucket
        if len(self._buckets) > self._capacity:
            del self._buckets[next(iter(self._buckets))]
        return bucket.take(cost)

    def give(self, name: str, amount: float = 1) -> None:
        """Return tokens that were taken for a request that does not count."""
        if (bucket := self._buckets.get(name)) is not None:
            bucket.give(amount)


@dataclass(frozen=True, slots=True)
class RateDecision:
    """Decision on a request, with the values of the rate limit headers.

    They are the requests left, the seconds until the bucket is full, and the seconds to wait.
    """

    allowed: bool
    remaining: int
    reset_s: int
    retry_after_s: int = 0


class _Lease:
    """Tokens of one bucket that this process may spend."""

    __slots__ = ("ends", "left", "lock", "refused_until", "shared")

    def __init__(self) -> None:
        self.left = 0
        self.ends = 0.0
        self.shared = 0
        self.refused_until = 0.0
        self.lock = asyncio.Lock()


class RateLimiter:
    """Limits requests per name to one rate."""

    def __init__(
        self, redis: Redis, rate: Rate, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate = rate
        self._redis = redis
        self._clock = clock
        self._local = Buckets(rate, _ENTRIES, clock=clock)
        self._leases: dict[str, _Lease] = {}
        self._portion = max(1, int(min(rate.per_s, rate.burst) * _SHARE_S))
        self.alone = False
        """True while this process counts on its own because Redis is unavailable."""

    def take_now(self, name: str) -> RateDecision | None:
        """Return a decision if the lease allows one; None: call :meth:`take`."""
        lease = self._leases.get(name)
        return None if lease is None else self._spend(lease, self._clock())

    async def take(self, name: str) -> RateDecision:
        """Return a decision, renewing the lease from Redis if needed."""
        lease = self._lease(name)
        async with lease.lock:  # the first of several waiting requests renews it for all
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
            return decision or RateDecision(
                allowed=False, remaining=0, reset_s=self._reset_s(0), retry_after_s=1
            )

    def _spend(self, lease: _Lease, now: float) -> RateDecision | None:
        if now < lease.refused_until:
            return RateDecision(False, 0, self._reset_s(0), math.ceil(lease.refused_until - now))
        if not lease.left or now >= lease.ends:
            return None
        lease.left -= 1
        remaining = lease.left + lease.shared
        return RateDecision(True, remaining, self._reset_s(remaining))

    def _take_alone(self, name: str) -> RateDecision:
        wait_s = self._local.take(name)
        remaining = int(self._local.level(name))
        return RateDecision(not wait_s, remaining, self._reset_s(remaining), math.ceil(wait_s))

    def _reset_s(self, remaining: int) -> int:
        return math.ceil((self.rate.burst - remaining) / self.rate.per_s)

    def _lease(self, name: str) -> _Lease:
        lease = self._leases.get(name)
        if lease is None:
            while len(self._leases) >= _ENTRIES:
                del self._leases[next(iter(self._leases))]
            lease = self._leases[name] = _Lease()
        return lease
