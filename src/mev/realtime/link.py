"""Interface between the hub and a connection of any transport."""

from enum import IntEnum
from typing import Protocol

from mev.realtime.batch import EncodedFrame


class CloseCode(IntEnum):
    """Close codes of every transport: those of RFC 6455, and the server's own from 4000."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    INVALID_TEXT = 1007
    POLICY = 1008
    TOO_BIG = 1009
    INTERNAL = 1011
    TRY_AGAIN_LATER = 1013
    UNAUTHORIZED = 4401
    DISCONNECTED = 4403


class Link(Protocol):
    """A connection; its methods do not block or raise."""

    @property
    def transport(self) -> str:
        """Kind of transport: ``websocket``, ``webtransport`` or ``sse``."""

    def send_text(self, text: bytes, resume: str = "") -> None:
        """Send a control message, or events as JSON.

        `resume` is the token of the position after the events.
        """

    def send_frame(self, frame: EncodedFrame, tail: bytes, *, stale: bool) -> None:
        """Send a frame with `tail` after its payload.

        A `stale` frame may be dropped if it is late and newer ones wait.
        """

    def send_datagram(self, payload: bytes) -> None:
        """Send one datagram of at most :meth:`datagram_bytes`; it may get lost."""

    def datagram_bytes(self) -> int:
        """Return the maximum size of a datagram; 0 if the transport has none."""

    def backlog(self) -> int:
        """Return the number of bytes accepted but not yet sent."""

    def taken(self) -> int:
        """Return the total number of bytes sent; it is constant while the peer reads nothing."""

    def ping(self) -> None:
        """Request a response from the peer, as a keepalive."""

    def close(self, code: int, reason: str) -> None:
        """Start to close the connection, and let the peer answer."""

    def abort(self, code: int, reason: str) -> None:
        """Drop the connection and its queued data.

        The reason is sent if the transport can do so, unless :meth:`close` has sent one already.
        """
