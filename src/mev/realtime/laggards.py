"""The clients that are behind: what waits for them is moved on in short intervals, and kept within the budget of the process."""

import asyncio

from mev.realtime.budget import Budget
from mev.realtime.client import Client

_INTERVAL_S = 0.02


class Laggards:
    """One timer for all of them, armed only while there are some."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._clients: dict[Client, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._relief: asyncio.Handle | None = None

    def add(self, client: Client) -> None:
        """Look after a client for as long as something waits for it."""
        self._clients[client] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL_S, self._fire)
        if self._budget.exceeded and self._relief is None:
            # Later: who is closed is told an exact cursor once everybody has been offered the batch that was too much.
            self._relief = asyncio.get_running_loop().call_soon(self._relieve)

    def discard(self, client: Client) -> None:
        """Forget a client."""
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
            # Parcels are shared: what one client gives up may free nothing, so the next one follows.
            most = max(self._clients, key=Client.waiting_bytes)
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
