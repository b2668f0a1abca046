"""Token bucket: the one rate limit inside a process.

Not thread-safe. The bucket reads the clock that its owner gives it.
"""

from collections.abc import Callable


class TokenBucket:
    """A bucket that holds up to `burst` tokens and refills at `per_s`; it starts full."""

    __slots__ = ("_at_s", "_clock", "_level", "burst", "per_s")

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float]) -> None:
        self.per_s = per_s
        self.burst = burst
        self._clock = clock
        self._level = float(burst)
        self._at_s = clock()

    def level(self) -> float:
        """Return the number of tokens; negative after overspending."""
        now_s = self._clock()
        passed_s = max(0.0, now_s - self._at_s)
        self._level = min(self.burst, self._level + passed_s * self.per_s)
        self._at_s = now_s
        return self._level

    def take(self, cost: float = 1) -> float:
        """Take tokens and return 0, or take none and return the seconds until there are enough."""
        wait_s = max(0.0, (cost - self.level()) / self.per_s)
        if not wait_s:
            self._level -= cost
        return wait_s

    def spend(self, amount: float) -> None:
        """Remove tokens for what was used already, even more than there are."""
        self._level -= amount

    def give(self, amount: float = 1) -> None:
        """Return tokens that were taken for a request that does not count."""
        self._level = min(self.burst, self._level + amount)
