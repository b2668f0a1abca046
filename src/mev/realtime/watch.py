"""Everything that happens to a client because time passes, in one timer for all of them.

Each tick looks at every client once; time-outs are therefore as precise as the tick, and cost nothing between ticks.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mev.realtime.client import Client
from mev.realtime.limits import Limits
from mev.realtime.websocket import Close

Dismiss = Callable[[Client, int, str], None]


@dataclass(slots=True)
class _Record:
    """What the watch remembers of a client."""

    since: float
    heard: int
    heard_at: float
    taken: int
    moved_at: float
    pinged_at: float
    closing_at: float | None = None


class Watch:
    """Apply the time-outs: authentication, keepalive, stalls, close handshakes."""

    def __init__(self, limits: Limits, clients: Mapping[int, Client], dismiss: Dismiss) -> None:
        self._limits = limits
        self._clients = clients
        self._dismiss = dismiss
        self._records: dict[int, _Record] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Tick until :meth:`stop`; a no-op while ticking."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._limits.tick_s, self._fire)

    def stop(self) -> None:
        """Stop ticking."""
        self._records.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def tick(self, now: float) -> None:
        """Look at every client at time `now`."""
        self._records = {client.id: self._record(client, now) for client in self._clients.values()}
        for client in list(self._clients.values()):
            self._look(client, self._records[client.id], now)

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

    def _look(self, client: Client, record: _Record, now: float) -> None:
        limits = self._limits
        if client.closing:
            self._await_close(client, record, now)
        elif now - record.moved_at >= limits.stall_timeout_s:
            client.link.abort()
        elif client.principal is None and now - record.since >= limits.auth_timeout_s:
            self._dismiss(client, Close.UNAUTHORIZED, "no auth message came in time")
        else:
            client.drain()
            client.tell()
            self._keep_alive(client, record, now)

    def _await_close(self, client: Client, record: _Record, now: float) -> None:
        if record.closing_at is None:
            record.closing_at = now
        elif now - record.closing_at >= self._limits.close_timeout_s:
            client.link.abort()

    def _keep_alive(self, client: Client, record: _Record, now: float) -> None:
        interval = self._limits.ping_interval_s
        if client.link.backlog():
            # A ping would sit behind what waits; as long as the client takes bytes it is alive.
            record.heard_at = record.pinged_at = now
        elif now - record.heard_at >= 3 * interval:
            self._dismiss(client, Close.GOING_AWAY, "no answer to pings")
        elif now - record.pinged_at >= interval:
            record.pinged_at = now
            client.link.ping()
