"""Time-outs of all clients, with one timer.

Each tick checks every client once. Time-outs are therefore as precise as the tick, and cost nothing
between ticks.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mev.realtime.client import Client
from mev.realtime.limits import HubLimits
from mev.realtime.link import CloseCode

Disconnect = Callable[[Client, int, str], None]


@dataclass(slots=True)
class _Record:
    """Time-out state of a client."""

    since: float
    heard: int
    heard_at: float
    taken: int
    moved_at: float
    pinged_at: float
    closing_at: float | None = None
    arrived_at: float = 0.0


class TimeoutWatch:
    """Applies the time-outs: authentication, keepalive, stalls, close handshakes."""

    def __init__(
        self, limits: HubLimits, clients: Mapping[int, Client], disconnect: Disconnect
    ) -> None:
        self._limits = limits
        self._clients = clients
        self._disconnect = disconnect
        self._records: dict[int, _Record] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Tick until :meth:`stop`; no effect if already ticking."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._limits.tick_s, self._fire)

    def stop(self) -> None:
        """Stop ticking."""
        self._records.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def tick(self, now: float) -> None:
        """Check every client at time `now`."""
        self._records = {client.id: self._record(client, now) for client in self._clients.values()}
        for client in list(self._clients.values()):
            self._check(client, self._records[client.id], now)

    def _fire(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._limits.tick_s, self._fire)
        self.tick(loop.time())

    def _record(self, client: Client, now: float) -> _Record:
        taken = client.link.taken()
        record = self._records.get(client.id)
        if record is None:
            return _Record(now, client.heard, now, taken, now, now)
        if taken != record.taken or not client.link.backlog():
            record.taken, record.moved_at = taken, now
        if client.heard != record.heard:
            record.heard, record.heard_at = client.heard, now
        return record

    def _check(self, client: Client, record: _Record, now: float) -> None:
        limits = self._limits
        if client.closing:
            self._await_close(client, record, now)
        elif now - record.moved_at >= limits.stall_timeout_s:
            client.link.abort(
                CloseCode.GOING_AWAY, f"the client took nothing for {limits.stall_timeout_s:g} s"
            )
        elif client.principal is None and now - record.since >= limits.auth_timeout_s:
            self._disconnect(client, CloseCode.UNAUTHORIZED, "no auth message came in time")
        else:
            client.drain()
            client.report()
            self._keep_alive(client, record, now)

    def _await_close(self, client: Client, record: _Record, now: float) -> None:
        limits = self._limits
        if record.closing_at is None:
            record.closing_at = record.arrived_at = now
        if client.link.backlog() and client.close_code != CloseCode.GOING_AWAY:
            # A slow client may read on and receive the close reason. A shutdown does not wait.
            record.arrived_at = now
        if (
            now - record.arrived_at >= limits.close_timeout_s
            or now - record.closing_at >= limits.stall_timeout_s
        ):
            client.link.abort(CloseCode.GOING_AWAY, "the client did not answer the close")

    def _keep_alive(self, client: Client, record: _Record, now: float) -> None:
        interval = self._limits.ping_interval_s
        if client.link.backlog():
            # A ping would wait behind queued data; as long as the client reads it is alive.
            record.heard_at = record.pinged_at = now
        elif now - record.heard_at >= 3 * interval:
            self._disconnect(client, CloseCode.GOING_AWAY, "no answer to pings")
        elif now - record.pinged_at >= interval:
            record.pinged_at = now
            client.link.ping()
