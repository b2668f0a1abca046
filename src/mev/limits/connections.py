"""Registry of a server's open HTTP connections; decides which one to close at the limit.

Connections that never sent a complete request are closed first, the oldest of them before the
others; then those between two requests. A request is in progress once its body is complete, so that
a body that never ends does not protect a connection. Where every connection has a request in
progress, a new one takes a connection reserved for control requests of operators, and where these
are in use, one reserved for the kill switch.
"""

import asyncio
import enum
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from prometheus_client import Counter

from mev.limits.addresses import Addresses

REFUSED = Counter(
    "mev_http_connections_refused_total", "Connections closed by a limit.", ["reason"]
)
LOCAL_PEER = "unix"
"""Peer name of every connection over the Unix socket."""
_SWEEP_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Limits of HTTP connections."""

    total: int = 10_000
    per_address: int = 1_000
    reserved: int = 64
    """Places beyond both, for requests to control paths."""
    stops: int = 16
    """Places beyond those, for requests to the kill switch."""
    head_bytes: int = 32 * 1024
    head_timeout_s: float = 10
    pipelined: int = 8
    """Requests that may wait on a connection for the answer to the one before."""
    stall_timeout_s: float = 60
    """Longest time a peer may read none of a response, or keep sending a body that was refused."""


class ConnectionUse(enum.Enum):
    """Requests allowed on a new connection."""

    ANY = enum.auto()
    CONTROL = enum.auto()
    """Requests to control paths only."""
    STOP = enum.auto()
    """Requests to the kill switch only."""


class CountedConnection(Protocol):
    """A connection as the registry uses it."""

    def look(self, now: float) -> None:
        """Close the connection if its peer is too slow at time `now`."""

    def evict(self) -> None:
        """Close the connection to make room for another one."""


class _Group:
    """Connections that count towards one limit; those without a request are sorted by age."""

    __slots__ = ("idle", "limit", "open", "silent")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open: set[CountedConnection] = set()
        self.silent: dict[CountedConnection, None] = {}
        self.idle: dict[CountedConnection, None] = {}

    @property
    def is_full(self) -> bool:
        return len(self.open) >= self.limit

    def add(self, connection: CountedConnection) -> None:
        self.open.add(connection)
        self.silent[connection] = None

    def begin(self, connection: CountedConnection) -> None:
        self.silent.pop(connection, None)
        self.idle.pop(connection, None)

    def rest(self, connection: CountedConnection) -> None:
        self.idle[connection] = None

    def remove(self, connection: CountedConnection) -> None:
        self.begin(connection)
        self.open.remove(connection)

    def oldest_without_request(self) -> CountedConnection | None:
        return next(iter(self.silent), None) or next(iter(self.idle), None)


class HttpConnections:
    """Every open HTTP connection of a server, checked twice a second."""

    def __init__(self, limits: ConnectionLimits, addresses: Addresses) -> None:
        self.limits = limits
        self._addresses = addresses
        self._all = _Group(limits.total)
        self._reserves = {
            ConnectionUse.CONTROL: _Group(limits.reserved),
            ConnectionUse.STOP: _Group(limits.stops),
        }
        self._by_address: dict[str, _Group] = {}
        self._entries: dict[CountedConnection, tuple[str, tuple[_Group, ...]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.are_last = False
        """Whether the server stops: each connection is closed after its next response."""
        self._empty = asyncio.Event()

    def of_workers(self, most: int) -> "HttpConnections":
        """Return a registry for up to `most` connections of this system's own processes."""
        return HttpConnections(replace(self.limits, total=most, per_address=most), self._addresses)

    async def end(self, patience_s: float) -> None:
        """Close each connection after its next response; return when all are, or after a time."""
        self.are_last = True
        if self._entries:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self._empty.wait()

    def enter(self, connection: CountedConnection, peer: str) -> ConnectionUse | None:
        """Register a connection and return its allowed use; None if the limit is reached."""
        groups, place = self._groups_of(peer), ConnectionUse.ANY
        if not all(map(self._make_room, groups)):
            reserve = next(
                (each for each in self._reserves if self._make_room(self._reserves[each])), None
            )
            if reserve is None:
                REFUSED.labels("connections").inc()
                return None
            groups, place = (self._reserves[reserve],), reserve
        elif groups[0] is not self._all:
            self._by_address[peer] = groups[0]
        for group in groups:
            group.add(connection)
        self._entries[connection] = peer, groups
        self._empty.clear()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)
        return place

    def begin(self, connection: CountedConnection) -> None:
        """Note that a whole request has arrived: the connection does not give way until `rest`."""
        for group in self._groups_with(connection):
            group.begin(connection)

    def rest(self, connection: CountedConnection) -> None:
        """Mark that every request of the connection has been answered."""
        for group in self._groups_with(connection):
            group.rest(connection)

    def leave(self, connection: CountedConnection) -> None:
        """Remove a connection."""
        if connection not in self._entries:
            return
        peer, groups = self._entries.pop(connection)
        for group in groups:
            group.remove(connection)
        address = self._by_address.get(peer)
        if address is not None and not address.open:
            del self._by_address[peer]
        if not self._entries and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._empty.set()

    def _groups_of(self, peer: str) -> tuple[_Group, ...]:
        """Return the groups in which a connection of `peer` is counted, its address's first."""
        if self._addresses.is_proxy(peer):
            return (self._all,)
        address = self._by_address.get(peer) or _Group(self.limits.per_address)
        # Remote connections do not use up the limit of local ones.
        return (address,) if peer == LOCAL_PEER else (address, self._all)

    def _groups_with(self, connection: CountedConnection) -> tuple[_Group, ...]:
        entry = self._entries.get(connection)
        return () if entry is None else entry[1]

    def _make_room(self, group: _Group) -> bool:
        """Return whether a group has room; evict a connection without a request if needed."""
        if not group.is_full:
            return True
        oldest = group.oldest_without_request()
        if oldest is None:
            return False
        REFUSED.labels("evicted").inc()
        self.leave(oldest)
        oldest.evict()
        return True

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_SWEEP_S, self._sweep)
        for connection in list(self._entries):
            connection.look(loop.time())
