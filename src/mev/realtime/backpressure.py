"""Backpressure of slow clients: the limit on queued bytes, and the timer that drains the queues."""

import asyncio
from typing import Protocol

from mev.realtime.batch import EncodedBatch

_INTERVAL_S = 0.02


class QueueBudget:
    """Counts the bytes queued in the whole process.

    An encoded batch in several queues counts once, because they share it.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.used_bytes = 0

    @property
    def exceeded(self) -> bool:
        """True if more bytes are queued than allowed."""
        return self.used_bytes > self._limit_bytes

    def hold(self, encoded: EncodedBatch) -> None:
        """Count an encoded batch that is added to a queue."""
        if not encoded.waiters:
            self.used_bytes += encoded.size
        encoded.waiters += 1

    def release(self, encoded: EncodedBatch) -> None:
        """Uncount an encoded batch that is removed from a queue."""
        encoded.waiters -= 1
        if not encoded.waiters:
            self.used_bytes -= encoded.size

    def add(self, size_bytes: int) -> None:
        """Count unshared bytes; a negative number uncounts them."""
        self.used_bytes += size_bytes


class QueueingClient(Protocol):
    """A client for which events are queued."""

    @property
    def is_behind(self) -> bool:
        """True if events are queued."""

    def queued_bytes(self) -> int:
        """Return the number of queued bytes."""

    def drain(self) -> None:
        """Send queued events while the connection accepts them."""

    def shed(self) -> None:
        """Drop everything queued."""


class SlowClients:
    """One timer for all slow clients, running only while there are some."""

    def __init__(self, budget: QueueBudget) -> None:
        self._budget = budget
        self._clients: dict[QueueingClient, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._relief: asyncio.Handle | None = None

    def add(self, client: QueueingClient) -> None:
        """Drain the queues of a client until they are empty."""
        self._clients[client] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL_S, self._fire)
        if self._budget.exceeded and self._relief is None:
            # Deferred: cursors are exact only once every client has been offered the current batch.
            self._relief = asyncio.get_running_loop().call_soon(self._relieve)

    def discard(self, client: QueueingClient) -> None:
        """Remove a client."""
        self._clients.pop(client, None)

    def stop(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._relief is not None:
            self._relief.cancel()
            self._relief = None

    def _relieve(self) -> None:
        self._relief = None
        while self._budget.exceeded and self._clients:
            # Encoded batches are shared: clearing one client's queue may free nothing, so continue.
            most = max(self._clients, key=lambda client: client.queued_bytes())
            most.shed()
            self._clients.pop(most, None)

    def _fire(self) -> None:
        self._timer = None
        for client in tuple(self._clients):
            client.drain()
            if not client.is_behind:
                self._clients.pop(client, None)
        if self._clients and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL_S, self._fire)
