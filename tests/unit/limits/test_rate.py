"""Tests of rate limits on a real Valkey, with rates so low that no token returns meanwhile."""

import asyncio
from pathlib import Path

import pytest

from mev.core.token_bucket import TokenBucket
from mev.limits.rate import Buckets, Rate, RateDecision, RateLimiter
from mev.store.redis import Redis

SLOW = Rate(per_s=0.01, burst=5)


class Clock:
    """A clock that is told the time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def ask(limiter: RateLimiter, name: str = "a") -> RateDecision:
    return limiter.take_now(name) or await limiter.take(name)


async def test_a_burst_goes_on_and_what_follows_waits(redis: Redis) -> None:
    limiter = RateLimiter(redis, SLOW)
    decisions = [await ask(limiter) for _ in range(7)]
    assert [decision.allowed for decision in decisions] == [True] * 5 + [False] * 2
    assert [decision.remaining for decision in decisions] == [4, 3, 2, 1, 0, 0, 0]
    assert decisions[0].reset_s == 100
    assert decisions[-1].retry_after_s in {99, 100}


async def test_each_name_has_its_own(redis: Redis) -> None:
    limiter = RateLimiter(redis, Rate(0.01, 1))
    assert [(await ask(limiter, name)).allowed for name in ("a", "b", "a", "b")] == [
        True,
        True,
        False,
        False,
    ]


async def test_processes_share_one_bucket(redis: Redis) -> None:
    one, other = RateLimiter(redis, SLOW), RateLimiter(redis, SLOW)
    allowed = [(await ask(limiter)).allowed for limiter in (one, other) * 4]
    assert sum(allowed) == 5


async def test_many_at_once_get_no_more(redis: Redis) -> None:
    limiter = RateLimiter(redis, Rate(0.01, 50))
    decisions = await asyncio.gather(*(ask(limiter) for _ in range(120)))
    assert sum(decision.allowed for decision in decisions) == 50


async def test_most_requests_do_not_ask_redis(redis: Redis) -> None:
    limiter = RateLimiter(redis, Rate(1000, 2000))
    assert limiter.take_now("a") is None
    await limiter.take("a")
    assert all(limiter.take_now("a") is not None for _ in range(99))
    assert limiter.take_now("a") is None


async def test_what_is_not_spent_in_time_is_dropped(redis: Redis) -> None:
    clock = Clock()
    limiter = RateLimiter(redis, Rate(1000, 2000), clock=clock)
    await limiter.take("a")
    clock.now += 1.5
    assert limiter.take_now("a") is None


async def test_a_refusal_is_remembered_until_there_is_one_again(redis: Redis) -> None:
    clock = Clock()
    limiter = RateLimiter(redis, Rate(0.01, 1), clock=clock)
    await limiter.take("a")
    assert not (await limiter.take("a")).allowed
    refused = limiter.take_now("a")
    assert refused is not None
    assert not refused.allowed
    clock.now += 101
    assert limiter.take_now("a") is None


async def test_without_redis_a_process_counts_for_itself(tmp_path: Path, redis: Redis) -> None:
    clock = Clock()
    gone = Redis(f"unix://{tmp_path}/none", timeout_s=1)
    limiter = RateLimiter(gone, Rate(10, 3), clock=clock)
    decisions = [await ask(limiter) for _ in range(4)]
    await gone.close()
    assert limiter.alone
    assert [decision.allowed for decision in decisions] == [True, True, True, False]
    assert decisions[-1].retry_after_s == 1
    clock.now += 0.1
    assert (await ask(limiter)).allowed
    limiter._redis = redis
    assert (await ask(limiter)).allowed
    assert not limiter.alone


def test_a_bucket_fills_at_its_rate() -> None:
    clock = Clock()
    buckets = Buckets(Rate(2, 4), clock=clock)
    start = clock.now
    assert [buckets.take("a") for _ in range(5)] == [0, 0, 0, 0, 0.5]
    clock.now = start + 0.25
    assert buckets.take("a") == 0.25
    clock.now = start + 0.5
    assert buckets.take("a") == 0
    clock.now = start + 100
    assert buckets.take("a") == 0
    assert buckets.level("a") == 3
    clock.now = start + 50
    assert buckets.level("a") == 3, "a clock that goes back takes nothing away"
    assert buckets.take("b", cost=5) == 0.5


def test_what_did_not_count_is_given_back() -> None:
    buckets = Buckets(Rate(1, 1), clock=Clock())
    assert buckets.take("a") == 0
    buckets.give("a")
    buckets.give("a")
    buckets.give("unknown")
    assert [buckets.take("a"), buckets.take("a")] == [0, 1]


def test_the_least_recently_used_bucket_goes() -> None:
    buckets = Buckets(Rate(1, 1), capacity=2, clock=Clock())
    for name in ("a", "b", "a", "c"):
        buckets.take(name)
    assert [buckets.level(name) for name in ("a", "b", "c")] == [0, 1, 0]


@pytest.mark.parametrize("cost", [0.5, 1, 2.5])
def test_a_bucket_never_goes_below_empty(cost: float) -> None:
    clock = Clock()
    buckets = Buckets(Rate(1, 5), clock=clock)
    for _ in range(50):
        buckets.take("a", cost)
        assert 0 <= buckets.level("a") <= 5
        clock.now += 0.1


def test_an_overspent_bucket_refills_before_it_is_above_empty() -> None:
    clock = Clock()
    bucket = TokenBucket(2, 2, clock)
    bucket.spend(6)
    assert bucket.level() == -4
    assert bucket.take() == 2.5
    clock.now += 2.5
    assert bucket.take() == 0
    assert bucket.level() == 0
