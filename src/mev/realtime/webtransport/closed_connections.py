"""Closed connections: their last packets, resent to peers that missed them (RFC 9000, 10.2.1)."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aioquic.quic.connection import NetworkAddress

Packet = tuple[bytes, NetworkAddress]
_AGAIN_S = 0.1


@dataclass(slots=True, kw_only=True)
class _Closed:
    ids: frozenset[bytes]
    packets: Sequence[Packet]
    until: float
    again_at: float


class ClosedConnections:
    """Stores the last packets of the `limit` connections closed last, each for `keep_s`.

    After that time the peer has given up too.
    """

    def __init__(self, *, keep_s: float, limit: int) -> None:
        self._keep_s = keep_s
        self._limit = limit
        self._in_order: deque[_Closed] = deque()
        self._by_id: dict[bytes, _Closed] = {}

    def add(self, ids: Iterable[bytes], packets: Sequence[Packet], now: float) -> None:
        """Store the last packets, if any, of a connection by its connection ids."""
        if not packets:
            return
        closed = _Closed(
            ids=frozenset(ids), packets=packets, until=now + self._keep_s, again_at=now + _AGAIN_S
        )
        self._in_order.append(closed)
        self._by_id.update(dict.fromkeys(closed.ids, closed))
        if len(self._in_order) > self._limit:
            self._forget_oldest()

    def __contains__(self, connection_id: bytes) -> bool:
        return connection_id in self._by_id

    def answer(self, connection_id: bytes, now: float) -> Sequence[Packet]:
        """Return the packets to resend to a peer; none if they were sent just before."""
        closed = self._by_id[connection_id]
        if now < closed.again_at:
            return ()
        closed.again_at = now + _AGAIN_S
        return closed.packets

    def expire(self, now: float) -> None:
        """Remove connections closed more than `keep_s` ago."""
        while self._in_order and self._in_order[0].until <= now:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        for connection_id in self._in_order.popleft().ids:
            self._by_id.pop(connection_id, None)
