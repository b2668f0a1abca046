"""One session as the hub sees it: control messages on a stream, frames on streams of their own, datagrams, an end that is said."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Protocol

from aioquic.quic.connection import QuicConnection

from mev.realtime.client import Client
from mev.realtime.guard import Guard
from mev.realtime.hub import Hub
from mev.realtime.link import EncodedFrame
from mev.realtime.session import Session
from mev.realtime.websocket import Close
from mev.realtime.webtransport import quic
from mev.realtime.webtransport.bounds import Bounds
from mev.realtime.webtransport.capsules import CapsuleError, CapsuleReader, close_capsule
from mev.realtime.webtransport.counts import Counts
from mev.realtime.webtransport.lines import Lines, LineTooLongError
from mev.realtime.webtransport.outbox import Outbox
from mev.realtime.webtransport.quic import SendStream


class Carrier(Protocol):
    """The connection that a session lives in."""

    @property
    def quic(self) -> QuicConnection:
        """The library's connection."""

    def wake(self) -> None:
        """Send soon what there is to send."""

    def end_request(self, stream_id: int, data: bytes) -> None:
        """Send the last data of a request's answer."""

    def close(self) -> None:
        """End the connection."""


class WebTransport:
    """The link of one session; made when the session is accepted, then told what its connection receives."""

    transport = "webtransport"

    def __init__(self, carrier: Carrier, session_id: int, bounds: Bounds, counts: Counts) -> None:
        self.session_id = session_id
        self.outbox = Outbox(carrier.quic, session_id, stale_s=bounds.stale_s, limit_bytes=bounds.unacknowledged_bytes)
        self._carrier = carrier
        self._bounds = bounds
        self._counts = counts
        self._loop = asyncio.get_running_loop()
        self._capsules = CapsuleReader()
        self._lines = Lines(bounds.early_bytes)
        self._control: SendStream | None = None
        self._busy: asyncio.Task[None] | None = None
        self._closing: tuple[int, str, float] | None = None
        self._said_goodbye = False
        self._ended_at: float | None = None
        self._leave: Callable[[], None] | None = None
        self._client: Client
        self._session: Session
        self._hub: Hub

    def begin(self, hub: Hub, guard: Guard, client: Client, session: Session) -> None:
        """Take those that the session is for."""
        self._hub, self._client, self._session = hub, client, session
        self._counts.sessions += 1
        self._counts.sessions_opened += 1

        def leave() -> None:
            guard.leave(client)
            hub.release(client)
            self._counts.sessions -= 1

        self._leave = leave

    # What the hub calls.

    def send_text(self, text: bytes) -> None:
        """Send a line on the control stream; before there is one, nobody has asked for anything."""
        if self._control is not None and self._closing is None:
            self._control.write(text + b"\n")
            self._carrier.wake()

    def send_frame(self, frame: EncodedFrame, tail: bytes, *, stale: bool) -> None:
        """Send a frame on a stream of its own."""
        if self._closing is not None:
            return
        if self.outbox.push(frame.payload, tail, stale=stale, now=time.monotonic()):
            self._carrier.wake()
        else:
            self.abort()

    def send_datagram(self, payload: bytes) -> None:
        """Send a datagram; of those that wait for their turn the oldest go first when there are too many."""
        if self._closing is None and 0 < len(payload) <= self.datagram_bytes():
            data = quic.datagram(self.session_id, payload)
            self._counts.datagrams_given_up += quic.send_newest_datagram(self._carrier.quic, data, waiting=self._bounds.datagrams_waiting)
            self._carrier.wake()

    def datagram_bytes(self) -> int:
        """Return how large a datagram may be now."""
        return quic.datagram_bytes(self._carrier.quic, self.session_id)

    def backlog(self) -> int:
        """Return how many bytes wait or are not acknowledged."""
        return self.outbox.backlog + (self._control.unacknowledged if self._control else 0)

    def taken(self) -> int:
        """Return how many bytes have been acknowledged in all."""
        return self.outbox.taken + (self._control.acknowledged if self._control else 0)

    def ping(self) -> None:
        """Have the peer acknowledge something."""
        self._carrier.quic.send_ping(self.session_id)
        self._carrier.wake()

    def close(self, code: int, reason: str) -> None:
        """End the session; what was handed over before still has a while to arrive."""
        if self._closing is None:
            self._closing = (code, reason, time.monotonic() + self._bounds.close_grace_s)
            if self._control is not None:
                self._control.write(b"", end=True)
            self._say_goodbye()
            self._carrier.wake()

    def abort(self) -> None:
        """End the connection."""
        self._carrier.close()
        self._loop.call_soon(self.gone)

    # What the connection calls.

    def control_received(self, stream_id: int, data: bytes) -> None:
        """Take bytes of the control stream."""
        if self._control is None:
            self._control = SendStream(self._carrier.quic, stream_id)
        self._lines.feed(data)
        self._read()

    def stream_reset(self, stream_id: int) -> None:
        """Hear that the peer gave a stream up, or wants no more of it."""
        if stream_id == self.session_id:
            self._peer_ended()
        elif self._control is not None and stream_id == self._control.id and self._control.was_reset:
            self._hub.dismiss(self._client, Close.PROTOCOL_ERROR, "the control stream was stopped")

    def capsules_received(self, data: bytes, *, ended: bool) -> None:
        """Take bytes of the request's stream."""
        try:
            closed = self._capsules.feed(data)
        except CapsuleError:
            self.abort()
            return
        if closed is not None or ended:
            self._peer_ended()

    def alive(self) -> None:
        """Hear a sign of life."""
        self._client.heard += 1

    def acknowledged(self) -> None:
        """See what has arrived, and use the room."""
        self.outbox.settle()
        if self._closing is not None:
            self._say_goodbye()
        elif not self._client.closing:
            self._client.drain()

    def tick(self, now: float) -> None:
        """Do what is due."""
        if self._ended_at is not None:
            if now - self._ended_at >= self._bounds.linger_s:
                self._carrier.close()
            return
        given_up = self.outbox.expire(now)
        self._counts.frames_given_up += given_up
        if given_up:
            self._carrier.wake()
            self.acknowledged()
        elif self._closing is not None:
            self._say_goodbye()

    def send_away(self) -> None:
        """Have the hub close the session because the server stops, and say where to go on."""
        self._hub.dismiss(self._client, Close.GOING_AWAY, "the server is shutting down", resume="going_away")

    def gone(self) -> None:
        """Forget the session; its connection is over."""
        leave, self._leave = self._leave, None
        if self._busy is not None:
            self._busy.cancel()
        if leave is not None:
            leave()

    def _read(self) -> None:
        """Handle the lines that are there, one after the other."""
        if self._busy is not None:
            if len(self._lines) > self._lines.max_size:
                self.abort()
            return
        try:
            while self._busy is None and not self._client.closing and (line := self._next_line()) is not None:
                self._client.heard += 1
                work = self._session.receive_text(line)
                if work is not None:
                    self._busy = self._loop.create_task(self._until_done(work))
        except LineTooLongError:
            self._hub.dismiss(self._client, Close.TOO_BIG, f"messages may have {self._lines.max_size} bytes")

    def _next_line(self) -> bytes | None:
        # Who it is may have changed with the line before.
        limits = self._hub.limits
        self._lines.max_size = limits.stranger_bytes if self._client.principal is None else limits.message_bytes
        return self._lines.next()

    async def _until_done(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception:
            self.abort()
            raise
        self._busy = None
        self._read()

    def _peer_ended(self) -> None:
        if self._ended_at is not None:
            return
        if not self._said_goodbye:  # it was its own idea
            self._said_goodbye = True
            self._carrier.close()
        self._ended_at = time.monotonic()
        self._hub.dismiss(self._client, Close.NORMAL, "")
        self._loop.call_soon(self.gone)

    def _say_goodbye(self) -> None:
        """Send the end once all before it has arrived, or its time is over."""
        if self._closing is None or self._said_goodbye:
            return
        code, reason, deadline = self._closing
        control_done = self._control is None or self._control.is_finished or self._control.was_reset
        if (self.outbox.is_idle and control_done) or time.monotonic() >= deadline:
            self._said_goodbye = True
            self.outbox.clear()
            self._carrier.end_request(self.session_id, close_capsule(code, reason))
            self._carrier.wake()
