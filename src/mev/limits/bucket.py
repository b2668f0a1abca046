"""Token buckets in this process, one for each of many names."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """So many a second, and so many at once."""

    per_s: float
    burst: int


class Buckets:
    """Buckets of one rate; the least recently used go when there are more than `capacity`, which forgives them."""

    def __init__(self, rate: Rate, capacity: int = 50_000) -> None:
        self.rate = rate
        self._capacity = capacity
        self._buckets: dict[str, tuple[float, float]] = {}

    def level(self, name: str, now_s: float) -> float:
        """Return how many tokens a bucket holds."""
        level, at = self._buckets.get(name, (self.rate.burst, now_s))
        return min(self.rate.burst, level + max(0.0, now_s - at) * self.rate.per_s)

    def take(self, name: str, now_s: float, cost: float = 1) -> float:
        """Take tokens and return 0, or take none and return after how many seconds they would be there."""
        level = self.level(name, now_s)
        self._buckets.pop(name, None)
        wait_s = max(0.0, (cost - level) / self.rate.per_s)
        self._buckets[name] = (level if wait_s else level - cost, now_s)
        if len(self._buckets) > self._capacity:
            del self._buckets[next(iter(self._buckets))]
        return wait_s

    def give(self, name: str, now_s: float, amount: float = 1) -> None:
        """Put tokens back that were taken for what turned out not to count."""
        if name in self._buckets:
            self._buckets[name] = (min(self.rate.burst, self.level(name, now_s) + amount), now_s)
