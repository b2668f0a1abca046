"""How much may be sent in a second."""


class Allowance:
    """A token bucket that holds one second's worth and may run into debt: whoever spends more than is left waits the longer after it."""

    __slots__ = ("_at", "_left", "per_s")

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self._left = float(per_s)
        self._at = 0.0

    def left(self, now_s: float) -> float:
        """Return what may be spent at time `now_s`."""
        self._left = min(self.per_s, self._left + max(0.0, now_s - self._at) * self.per_s)
        self._at = now_s
        return self._left

    def spend(self, amount: float) -> None:
        """Take away what was sent."""
        self._left -= amount
