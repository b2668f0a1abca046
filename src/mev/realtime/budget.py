"""One bound on what waits for slow clients, for the whole process. A parcel that waits in many queues counts once: they share it."""

from mev.realtime.parcel import Parcel


class Budget:
    """Count the bytes that wait."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.used_bytes = 0

    @property
    def exceeded(self) -> bool:
        """Whether more waits than may."""
        return self.used_bytes > self._limit_bytes

    def hold(self, parcel: Parcel) -> None:
        """Count a parcel that begins to wait in one more queue."""
        if not parcel.waiters:
            self.used_bytes += parcel.size
        parcel.waiters += 1

    def release(self, parcel: Parcel) -> None:
        """Count a parcel that waits in one queue less."""
        parcel.waiters -= 1
        if not parcel.waiters:
            self.used_bytes -= parcel.size

    def add(self, size_bytes: int) -> None:
        """Count bytes that nobody shares; negative ones are given back."""
        self.used_bytes += size_bytes
