"""Figures of the latest seconds: what has changed since an earlier sample."""

import math
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
Buckets = Mapping[float, float]
"""Observations of a histogram up to each bound."""


class SampleWindow(Generic[T]):
    """Samples of about the latest `length_s`, taken on request, at most each `every_s`.

    `first` is the sample of the start. There is no timer: if nothing was asked for a while, the
    window is longer than `length_s`, until the next sample is at least `least_s` old.
    """

    def __init__(
        self,
        first: T,
        *,
        length_s: float = 60.0,
        every_s: float = 1.0,
        least_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._length_s = length_s
        self._every_s = every_s
        self._least_s = least_s
        self._clock = clock
        self._samples: deque[tuple[float, T]] = deque([(clock(), first)])

    def add(self, sample: T) -> tuple[float, T]:
        """Take the current sample; return the age of an earlier one in seconds, and that one."""
        now = self._clock()
        at, earlier = self._baseline(now)
        if now - self._samples[-1][0] >= self._every_s:
            self._samples.append((now, sample))
        return now - at, earlier

    def _baseline(self, now: float) -> tuple[float, T]:
        samples = self._samples
        while len(samples) > 1 and now - samples[1][0] >= self._length_s:
            samples.popleft()
        if len(samples) > 1:
            oldest, following = samples[0][0], samples[1][0]
            if now - oldest >= 2 * self._length_s and now - following >= self._least_s:
                samples.popleft()
        return samples[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Observations of a histogram in a window, and quantiles estimated from its buckets.

    A quantile in the last bucket is given as its lower bound; null without an observation.
    """

    count: int
    per_s: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None


def latency(counts: Buckets, window_s: float) -> Latency:
    """Return the figures of the observations `counts`, made in `window_s`."""
    count = int(counts.get(math.inf, 0))
    return Latency(
        count=count,
        per_s=rate(count, window_s),
        p50_ms=quantile_ms(counts, 0.5),
        p90_ms=quantile_ms(counts, 0.9),
        p99_ms=quantile_ms(counts, 0.99),
    )


def quantile_ms(counts: Buckets, share: float) -> float | None:
    """Return a quantile, interpolated inside its bucket as Prometheus does."""
    total = counts.get(math.inf, 0)
    if not total:
        return None
    wanted, low, under = total * share, 0.0, 0.0
    for bound, count in sorted(counts.items()):
        if count >= wanted:
            if math.isfinite(bound):
                low += (bound - low) * (wanted - under) / (count - under)
            return round(1000 * low, 3)
        low, under = bound, count
    return None


def rate(change: float, window_s: float) -> float:
    """Return a change per second, 0 for an empty window."""
    return round(change / window_s, 3) if window_s > 0 else 0.0


class PlainHistogram:
    """Counts of seconds by bucket, in plain integers: no lock, no other objects.

    Code that may run at any place in a program, such as a callback of the garbage collector, can
    use it; the locks of other histograms could already be held there.
    """

    __slots__ = ("_bounds", "_counts", "total_s")

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self._bounds = (*bounds_s, math.inf)
        self._counts = [0] * len(self._bounds)
        self.total_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self.total_s += seconds

    def buckets(self) -> dict[float, float]:
        """Return the observations up to each bound."""
        found, total = {}, 0
        for bound, count in zip(self._bounds, self._counts, strict=True):
            total += count
            found[bound] = float(total)
        return found
