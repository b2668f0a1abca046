"""Frames of a session: queued, in flight, or dropped as late.

Each frame is a stream. Streams are opened only as fast as their data is sent, so that the library
buffers little, the order of frames is roughly kept, and dropping a queued frame costs nothing.
Bytes are counted until the peer has acknowledged them.
"""

from collections import deque

from aioquic.quic.connection import QuicConnection

from mev.realtime.webtransport import quic
from mev.realtime.webtransport.quic import SendStream

LATE = 2
"""Stream error code for a frame that was dropped."""
_AT_ONCE_BYTES = 64 * 1024
_OPEN_STREAMS = 128
_SMALL = 16 * 1024


class _Sending:
    """A frame from its queueing to its acknowledgement."""

    __slots__ = ("acknowledged", "at", "offset", "payload", "size", "stale", "stream", "tail")

    def __init__(self, payload: bytes, tail: bytes, *, stale: bool, at: float) -> None:
        self.payload = payload
        self.tail = tail
        self.size = len(payload) + len(tail)
        self.stale = stale
        self.at = at
        self.stream: SendStream | None = None
        self.offset = 0
        """Bytes of the payload written to the stream."""
        self.acknowledged = 0


class SessionOutbox:
    """The frames of one session; used by the event loop's thread only."""

    def __init__(
        self, connection: QuicConnection, session_id: int, *, stale_s: float, limit_bytes: int
    ) -> None:
        self.quic = connection
        """The connection that sends them."""
        self._session_id = session_id
        self._stale_s = stale_s
        self._limit_bytes = limit_bytes
        self._queue: deque[_Sending] = deque()
        self._queued_bytes = 0
        self._open: list[_Sending] = []
        self._writing: _Sending | None = None
        self._under_way_bytes = 0
        self.taken = 0
        """Bytes that the peer has acknowledged in total."""
        self.given_up = 0
        """Frames that were late, or that the peer stopped."""

    @property
    def backlog(self) -> int:
        """Bytes queued or not acknowledged, as of the last :meth:`settle`."""
        return self._queued_bytes + self._under_way_bytes

    @property
    def waits(self) -> bool:
        """True if data is queued."""
        return bool(self._queue) or self._writing is not None

    @property
    def is_idle(self) -> bool:
        """True if the peer has acknowledged everything."""
        return not self._queue and not self._open

    def push(self, payload: bytes, tail: bytes, *, stale: bool, now: float) -> bool:
        """Queue a frame; return whether there was room.

        Stale frames are dropped to make room.
        """
        if self.backlog > self._limit_bytes and not self._make_room():
            return False
        sending = _Sending(payload, tail, stale=stale, at=now)
        self._queue.append(sending)
        self._queued_bytes += sending.size
        return True

    def pump(self) -> bool:
        """Write as much as can be sent soon; return whether anything was written."""
        before = room = _AT_ONCE_BYTES - self.unsent()
        while room > 0 and (self._writing is not None or self._start()):
            room -= self._write(room)
        return room < before

    def unsent(self) -> int:
        """Return the number of bytes written but never sent in a packet."""
        return sum(sending.stream.unsent for sending in self._open if sending.stream)

    def settle(self) -> None:
        """Process the peer's acknowledgements."""
        still: list[_Sending] = []
        under_way = 0
        for sending in self._open:
            stream = sending.stream
            if stream is not None:
                self.taken += stream.acknowledged - sending.acknowledged
                sending.acknowledged = stream.acknowledged
            if stream is None or (stream.is_finished and sending is not self._writing):
                continue
            if stream.was_reset:
                self._stop_writing(sending)
            else:
                under_way += stream.unacknowledged
            if not stream.is_finished:
                still.append(sending)
        if self._writing is not None:
            under_way += self._writing.size - self._writing.offset
        self._open = still
        self._under_way_bytes = under_way

    def expire(self, now: float) -> int:
        """Drop late frames except the newest; return their number."""
        due = now - self._stale_s
        if not (self._open and self._open[0].at <= due) and not (
            self._queue and self._queue[0].at <= due
        ):
            return 0
        newest = self._queue[-1] if self._queue else self._open[-1]
        given_up = 0
        for sending in self._open:
            if (
                sending.stale
                and sending.at <= due
                and sending is not newest
                and sending.stream
                and not sending.stream.was_reset
            ):
                sending.stream.reset(LATE)
                given_up += 1
        given_up += self._drop(
            [
                sending
                for sending in self._queue
                if sending.stale and sending.at <= due and sending is not newest
            ]
        )
        self.given_up += given_up
        self.settle()
        return given_up

    def clear(self) -> None:
        """Drop everything."""
        self._drop(list(self._queue))
        for sending in self._open:
            if sending.stream:
                sending.stream.reset(LATE)
        self._writing = None
        self.settle()

    def _make_room(self) -> bool:
        excess = self.backlog - self._limit_bytes
        losers = []
        for sending in self._queue:
            if excess <= 0:
                break
            if sending.stale:
                losers.append(sending)
                excess -= sending.size
        self.given_up += self._drop(losers)
        return excess <= 0

    def _drop(self, losers: list[_Sending]) -> int:
        if losers:
            gone = set(map(id, losers))
            self._queue = deque(sending for sending in self._queue if id(sending) not in gone)
            self._queued_bytes = sum(sending.size for sending in self._queue)
        return len(losers)

    def _start(self) -> bool:
        if (
            not self._queue
            or len(self._open) >= _OPEN_STREAMS
            or not quic.may_open_stream(self.quic)
        ):
            return False
        sending = self._queue.popleft()
        sending.stream = quic.open_stream(self.quic, self._session_id)
        self._queued_bytes -= sending.size
        self._under_way_bytes += sending.size
        self._open.append(sending)
        self._writing = sending
        return True

    def _write(self, room: int) -> int:
        sending = self._writing
        if sending is None or sending.stream is None or sending.stream.was_reset:
            self._writing = None
            return 0
        stream, payload, start = sending.stream, sending.payload, sending.offset
        if start == 0 and sending.size <= _SMALL:
            stream.write(payload + sending.tail, end=True)
            self._writing = None
            return sending.size
        stop = min(len(payload), start + room)
        if start < stop:
            stream.write(memoryview(payload)[start:stop])
        sending.offset = stop
        if stop == len(payload):
            stream.write(sending.tail, end=True)
            self._writing = None
        return stop - start

    def _stop_writing(self, sending: _Sending) -> None:
        if self._writing is sending:
            self._writing = None
            self.given_up += 1
