"""What the hub needs of a connection, whichever transport carries it."""

from functools import cached_property
from typing import Protocol

from mev.realtime import websocket
from mev.realtime.websocket import Opcode


class EncodedFrame:
    """A serialised `mev.v1.Frame` without what only one subscriber is told; every subscriber shares its bytes."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload

    @cached_property
    def message(self) -> bytes:
        """The payload behind its WebSocket header."""
        return websocket.frame(Opcode.BINARY, self.payload)


class Link(Protocol):
    """A connection; nothing here blocks or raises."""

    @property
    def transport(self) -> str:
        """Its kind: ``websocket`` or ``webtransport``."""

    def send_text(self, text: bytes) -> None:
        """Send a control message, or events as JSON."""

    def send_frame(self, frame: EncodedFrame, tail: bytes, *, stale: bool) -> None:
        """Send a frame and, behind its payload, `tail`. A `stale` one may be given up when it is late and newer ones wait."""

    def send_datagram(self, payload: bytes) -> None:
        """Send one datagram of at most :meth:`datagram_bytes`; it may never arrive."""

    def datagram_bytes(self) -> int:
        """Return how large a datagram may be now; 0 where there are none."""

    def backlog(self) -> int:
        """Return how many bytes have been handed over and have not left."""

    def taken(self) -> int:
        """Return how many bytes have left in all: it stands still while the peer takes nothing."""

    def ping(self) -> None:
        """Ask for a sign of life."""

    def close(self, code: int, reason: str) -> None:
        """Say goodbye and let the peer answer."""

    def abort(self) -> None:
        """Drop the connection and what waits in it."""
